"""The built-in corpus: its probabilities are exact, its Korean is regular, and it is what the split and the model need."""
import math
import re
import unicodedata
from collections import Counter
from itertools import islice

import pytest

from data import demo
from data.demo import Choice, bits, entropy, josa, reviews

SAMPLE = list(reviews(20_000, seed=1))
MENUS = {menu: place for place, (menus, *_) in demo.KINDS.items() for _, menu in demo.parse(menus)}
NOUNS = list(demo.ASPECTS)


def stems(tone):
    """Every predicate of this tone, GOOD or BAD, about whatever."""
    texts = [demo.TASTE[tone]] + [kind[1 + tone] for kind in demo.KINDS.values()] + [a[1 + tone] for a in demo.ASPECTS.values()]
    return {stem for text in texts for _, stem in demo.parse(text)}


def everything(node):
    """All (text, probability) of a small tree, by brute force."""
    if isinstance(node, str):
        return [(node, 1.0)]
    if isinstance(node, Choice):
        return [(text, p * q) for p, option in zip(node.p, node.nodes) for text, q in everything(option)]
    done = [('', 1.0)]
    for part in node:
        done = [(a + b, p * q) for a, p in done for b, q in everything(part)]
    return done


# ---- the probabilities

def test_bits_of_a_review_are_found_again_from_its_text():
    for rating, text, cost in SAMPLE[:2000]:
        assert bits(rating, text) == pytest.approx(cost, abs=1e-9), text


def test_bits_of_what_the_grammar_cannot_write_are_infinite():
    rating, text, _ = next(r for r in SAMPLE if r[0] == 1)
    menu = next(m for m in MENUS if m in text)
    other = next(m for m in MENUS if MENUS[m] == MENUS[menu] and m not in text and josa(m, '이/가') == josa(menu, '이/가'))
    for wrong in ('', text + ' ', text[:-1], ' ' + text, text.replace(' ', '  ', 1), text.replace(menu, other, 1)):
        assert bits(rating, wrong) == math.inf, wrong
    assert bits(0, text) == bits(2, text) == math.inf


@pytest.mark.parametrize('tree', [
    demo.clause('주차', '도', demo.BAD, demo.ASPECTS['주차'][1 + demo.BAD]),
    (demo.words('*4|어제 *3|오늘 '), Choice([(3, '가'), (2, ('나', demo.words('다|라*5'))), (1, ('마', '바'))]), demo.words('.|!'))])
def test_brute_force_over_a_small_tree_agrees(tree):
    texts = everything(tree)
    assert sum(p for _, p in texts) == pytest.approx(1)
    assert len({text for text, _ in texts}) == len(texts)
    assert demo.mean(tree)[0] == pytest.approx(-sum(p * math.log2(p) for _, p in texts))
    assert demo.mean(tree)[1] == pytest.approx(sum(p * len(text) for text, p in texts))
    for text, p in texts:
        assert demo.inside(tree, text, {0: 1.0})[len(text)] == pytest.approx(p)


def test_inside_adds_up_the_derivations_of_an_ambiguous_text():
    tree = Choice([(1, '김밥'), (1, ('김', '밥')), (2, '김치')])
    assert demo.inside(tree, '김밥', {0: 1.0}) == {2: 0.5}


def test_entropy_and_length_are_the_means_of_the_sample():
    for exact, sampled in zip(entropy(), ([cost for *_, cost in SAMPLE], [len(text) for _, text, _ in SAMPLE])):
        mean = sum(sampled) / len(sampled)
        error = math.sqrt(sum((x - mean) ** 2 for x in sampled)) / len(sampled)
        assert abs(mean - exact) < 4 * error


def test_entropy_and_length_are_of_the_promised_size():
    per_review, chars = entropy()
    assert 45 < per_review < 65 and 50 < chars < 90 and 0.6 < per_review / chars < 0.9


def test_ratings_come_in_their_shares():
    counts = Counter(rating for rating, *_ in SAMPLE)
    assert set(counts) == set(demo.RATINGS) == {0, 1, 2}
    for rating, p in demo.RATINGS.items():
        assert abs(counts[rating] / len(SAMPLE) - p) < 4 * math.sqrt(p * (1 - p) / len(SAMPLE))


def test_no_alternative_is_exotic():
    for text in [demo.ENDINGS, demo.WHEN, demo.WHO, demo.WHERE, demo.MEH_ALL, *demo.ADVERB, *demo.TO_START, *demo.FAREWELL.values(),
                 *demo.STOP.values(),
                 *(t for kind in demo.KINDS.values() for t in kind), *(t for a in demo.ASPECTS.values() for t in a[1:])]:
        die = demo.words(text)
        assert len(set(die.nodes)) == len(die.nodes) <= 16 and min(die.p) > 0.02, text


# ---- the seed

def test_a_seed_decides_the_reviews():
    assert list(reviews(50, 7)) == list(reviews(50, 7)) != list(reviews(50, 8))
    assert list(reviews(10, 7)) == list(reviews(20, 7))[:10] == list(islice(reviews(10 ** 9, 7), 10))


def test_reviews_do_not_repeat():
    assert len({text for _, text, _ in SAMPLE}) >= 0.999 * len(SAMPLE)
    assert not {text for _, text, _ in SAMPLE} & {text for _, text, _ in reviews(2000, seed=2)}


# ---- the text

@pytest.mark.parametrize('word, pair, particle', [
    ('김밥', '이/가', '이'), ('커피', '이/가', '가'), ('김밥', '은/는', '은'), ('커피', '은/는', '는'), ('라면', '을/를', '을'),
    ('초밥', '으로/로', '으로'), ('파스타', '으로/로', '로'), ('스콘', '으로/로', '으로'), ('삼겹살', '으로/로', '로'),
    ('삼겹살', '이/가', '이'), ('목살', '을/를', '을'), ('닭', '이/가', '이'), ('가', '은/는', '는'), ('힣', '은/는', '은')])
def test_josa(word, pair, particle):
    assert josa(word, pair) == particle


def test_particles_fit_the_word_before_them():
    nouns, seen = '|'.join([*MENUS, *NOUNS]), set()
    for _, text, _ in SAMPLE:
        for noun, particle in re.findall(rf'(?:^| )({nouns})(이|가|은|는|을|를|으로|로) ', text):
            last = unicodedata.normalize('NFD', noun)[-1]  # a final consonant is a letter of its own in NFD, from U+11A8 on
            closed = last >= '\u11a8'
            assert (particle == '으로') == (closed and last != 'ᆯ') if particle.endswith('로') else (particle in '이은을') == closed, text
            seen.add((particle, closed))
    assert seen == {*((p, True) for p in ('이', '은', '을', '으로', '로')), *((p, False) for p in '가는를로')}


def test_text_is_clean():
    for _, text, _ in SAMPLE:
        assert text == ' '.join(text.split()) == unicodedata.normalize('NFC', text)
        assert not set(text) & set('{}<>*|/') and not re.search(r'[^가-힣 ][가-힣]', text), text  # no stop without a space after it
    assert len(set(''.join(text for _, text, _ in SAMPLE))) < 450


def test_place_menu_and_aspects_hang_together():
    for _, text, _ in SAMPLE[:5000]:
        (place,) = [p for p in demo.KINDS if f'{p}에' in text]
        (menu,) = [m for m in MENUS if re.search(rf'(^| ){m}', text)]
        assert MENUS[menu] == place and 2 <= text.count(menu) <= 3, text
        aspects = re.findall(rf'(?<= )({"|".join(NOUNS)})[이가은는도] ', text)
        assert len(set(aspects)) == len(aspects) == 2, text
        assert ('마시러' in text or '마셨' in text) <= (place == '카페') <= ('먹' not in text), text


def test_every_opinion_has_the_tone_of_its_rating():
    good, bad = stems(demo.GOOD), stems(demo.BAD)
    good, bad = (re.compile(rf' ({"|".join(a - b)})(?=고|지만|는데|어요|네요|음|습니다|다)') for a, b in ((good, bad), (bad, good)))
    for rating, text, _ in SAMPLE:
        opinions = text[text.index('에'):]
        assert not (bad if rating == 1 else good).search(opinions) or rating == 2, text
    mixed = [text for rating, text, _ in SAMPLE if rating == 2]
    assert 0.5 < sum(bool(good.search(text) and bad.search(text)) for text in mixed) / len(mixed) < 0.75  # the others are lukewarm


def test_two_to_four_sentences_end_alike():
    for _, text, _ in SAMPLE:
        ends = re.findall(r'(어요|네요|음|습니다|다)(?:[.!~^]| [ㅎㅋㅠㅡ])', text)
        assert 2 <= len(ends) <= 4 and len(set(ends)) == 1, text
