"""The demo corpus: its probabilities are exact, its Korean is regular, its texts are clean."""
import math
import re
import unicodedata
from collections import defaultdict
from itertools import islice

import pytest

from parts import grammar
from parts.grammar import BAD, GOOD, THEMES, Choice, josa, reviews, story

SAMPLE = list(reviews(20_000, seed=1))
TEXTS = [text for _, text, _ in SAMPLE]
NOUNS = list(grammar.ASPECTS)
MENUS = {}  # menu: place
for _place, (_menus, _, _) in grammar.PLACES.items():
    for _, _menu in grammar.parse(_menus):
        MENUS[_menu] = _place


def stems(tone):
    """Every predicate of this tone, GOOD or BAD, about whatever."""
    alternatives = [grammar.TASTE[tone]]
    alternatives += [place[1 + tone] for place in grammar.PLACES.values()]
    alternatives += [aspect[1 + tone] for aspect in grammar.ASPECTS.values()]
    return {stem for text in alternatives for _, stem in grammar.parse(text)}


def everything(node):
    """All (text, probability) of a small tree, by brute force."""
    if isinstance(node, str):
        return [(node, 1.0)]
    pairs = []
    if isinstance(node, Choice):
        for p, option in zip(node.p, node.nodes):
            pairs += [(text, p * q) for text, q in everything(option)]
        return pairs
    pairs = [('', 1.0)]
    for part in node:
        pairs = [(a + b, p * q) for a, p in pairs for b, q in everything(part)]
    return pairs


# --- the probabilities, found in another way: from the text alone ---

def inside(node, text, begins):
    """All derivations of text[begin:end] from node: {begin: probability} → {end: probability}.

    This is the inside algorithm for probabilistic grammars (Baker 1979), from left to right.
    """
    if type(node) is str:
        return {begin + len(node): p for begin, p in begins.items() if text.startswith(node, begin)}
    if type(node) is tuple:
        for part in node:
            begins = inside(part, text, begins) if begins else begins
        return begins
    ends = defaultdict(float)
    for p, option in zip(node.p, node.nodes):
        for end, q in inside(option, text, begins).items():
            ends[end] += p * q
    return ends


def review_bits(rating, text):
    """-log2 P(rating, text), found from the text alone; infinite if the grammar cannot write it."""
    total = 0.0
    for p, theme in zip(THEMES.p, THEMES.nodes):
        menu = theme[3]
        if theme[0] == rating and menu in text:  # every story names its menu
            ends = inside(story(*theme), text, {0: 1.0})
            total += p * ends.get(len(text), 0.0)
    return -math.log2(total) if total else math.inf


def test_bits_of_a_review_are_found_again_from_its_text():
    for rating, text, bits in SAMPLE[:2000]:
        assert review_bits(rating, text) == pytest.approx(bits, abs=1e-9), text


def other_menu(menu):
    """Another menu of the same place that takes the same particles."""
    particle = josa(menu, '이/가')
    for other, place in MENUS.items():
        if other != menu and place == MENUS[menu] and josa(other, '이/가') == particle:
            return other


def test_bits_of_what_the_grammar_cannot_write_are_infinite():
    _, text, _ = next(review for review in SAMPLE if review[0] == 1)
    menu = next(menu for menu in MENUS if menu in text)
    two_menus = text.replace(menu, other_menu(menu), 1)
    two_spaces = text.replace(' ', '  ', 1)
    for wrong in ('', text + ' ', text[:-1], ' ' + text, two_spaces, two_menus):
        assert review_bits(1, wrong) == math.inf, wrong
    assert review_bits(0, text) == review_bits(2, text) == math.inf


NESTED = Choice([(3, '가'), (2, ('나', grammar.words('다|라*5'))), (1, ('마', '바'))])
SMALL_TREES = [
    grammar.aspect_clause('주차', '도', BAD),
    (grammar.words('*4|어제 *3|오늘 '), NESTED, grammar.words('.|!')),
]


@pytest.mark.parametrize('tree', SMALL_TREES)
def test_brute_force_over_a_small_tree_agrees(tree):
    texts = everything(tree)
    assert sum(p for _, p in texts) == pytest.approx(1)
    assert len({text for text, _ in texts}) == len(texts)
    for text, p in texts:
        assert inside(tree, text, {0: 1.0})[len(text)] == pytest.approx(p)


def test_inside_adds_up_the_derivations_of_an_ambiguous_text():
    tree = Choice([(1, '김밥'), (1, ('김', '밥')), (2, '김치')])
    assert inside(tree, '김밥', {0: 1.0}) == {2: 0.5}


# --- the seed ---

def test_a_seed_decides_the_reviews():
    assert list(reviews(50, 7)) == list(reviews(50, 7)) != list(reviews(50, 8))
    ten = list(reviews(10, 7))
    assert ten == list(reviews(20, 7))[:10] == list(islice(reviews(10 ** 9, 7), 10))


def test_particles_fit_the_word_before_them():
    nouns = '|'.join([*MENUS, *NOUNS])
    pattern = re.compile(rf'(?:^| )({nouns})(이|가|은|는|을|를|으로|로) ')
    seen = set()
    for text in TEXTS:
        for noun, particle in pattern.findall(text):
            # in NFD a final consonant is a letter of its own, from U+11A8 on
            last = unicodedata.normalize('NFD', noun)[-1]
            closed = last >= '\u11a8'
            if particle in ('으로', '로'):
                assert (particle == '으로') == (closed and last != 'ᆯ'), text
            else:
                assert (particle in '이은을') == closed, text
            seen.add((particle, closed))
    after_consonant = {(particle, True) for particle in ('이', '은', '을', '으로', '로')}
    after_vowel = {(particle, False) for particle in '가는를로'}
    assert seen == after_consonant | after_vowel


def test_text_is_clean():
    for text in TEXTS:
        assert text == ' '.join(text.split()) == unicodedata.normalize('NFC', text)
        assert not set(text) & set('{}<>*|/')
        assert not re.search(r'[^가-힣 ][가-힣]', text), text  # no stop without a space after it
    assert len(set(''.join(TEXTS))) < 450


def test_place_menu_and_aspects_hang_together():
    aspect_pattern = re.compile(rf'(?<= )({"|".join(NOUNS)})[이가은는도] ')
    for text in TEXTS[:5000]:
        (place,) = [place for place in grammar.PLACES if f'{place}에' in text]
        (menu,) = [menu for menu in MENUS if re.search(rf'(^| ){menu}', text)]
        assert MENUS[menu] == place, text
        assert 2 <= text.count(menu) <= 3, text
        aspects = aspect_pattern.findall(text)
        assert len(set(aspects)) == len(aspects) == 2, text
        drinks = '마시러' in text or '마셨' in text
        assert place == '카페' or not drinks, text
        assert place != '카페' or '먹' not in text, text


def opinions_of(own, other):
    """A pattern for the predicates that only one tone has."""
    only = '|'.join(own - other)
    return re.compile(rf' ({only})(?=고|지만|는데|어요|네요|음|습니다|다)')


def test_every_opinion_has_the_tone_of_its_rating():
    good = opinions_of(stems(GOOD), stems(BAD))
    bad = opinions_of(stems(BAD), stems(GOOD))
    for rating, text, _ in SAMPLE:
        opinions = text[text.index('에'):]
        wrong = bad if rating == 1 else good
        assert rating == 2 or not wrong.search(opinions), text
    mixed = [text for rating, text, _ in SAMPLE if rating == 2]
    n_both = sum(1 for text in mixed if good.search(text) and bad.search(text))
    assert 0.5 < n_both / len(mixed) < 0.75  # the others are lukewarm
