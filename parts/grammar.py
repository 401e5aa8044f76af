"""The demo corpus: restaurant reviews from a small grammar, every probability of which is known.

A language model can be no better than its text is predictable. For real reviews nobody knows how
predictable they are, so a loss of 2.1 may be excellent or poor. Here the reviews come from a
grammar, a tree of dice, and every die is known. Hence the probability P of each review, and a floor
for the loss:

    floor     the mean of -log2 P over the validation reviews, in bits per character. A model can be
              below it by luck, but not by learning

How a review is built. First come the four things that hold throughout, then the text from left to
right:

    rating      0 bad, 1 good, 2 mixed        the tone of every opinion, and of the farewell
    ending      -어요 -네요 -음 -습니다 -다       how every sentence ends
    place       고깃집                         which menus there are, how they can taste
    menu        삼겹살                         named in the opening and in the body

    어제 친구랑 동네 고깃집에서 삼겹살을 먹었는데             opening: when, who, where, what
    삼겹살이 진짜 부드러웠고 매장도 넓었고 가격이 참 착했어요.     body: the menu, two aspects
    또 가고 싶어요!                                  farewell: may name the menu again

The letters nearby do not say which menu comes back, which aspect is used up, or that this reviewer
ends on -어요: a model has to look back for it. That is what attention is for.

One regularity of Korean keeps this page short: every predicate is a stem with its tense (맛있었,
가겠), to which each ending and each conjunction (고, 지만, 는데) attaches unchanged. Only particles
depend on the sound before them: see josa.
"""
import math
import random
from bisect import bisect
from functools import lru_cache, partial
from itertools import accumulate

# --- the words ---
# alternatives are parted by |; *3 is a weight (1 where none is given); a space at the end of a word
# is part of it

ENDINGS = '어요*5|네요|음*2|습니다*2|다'
WHEN = (
    '*4|어제 *3|오늘 *3|주말에 *3|점심에 *2|저녁에 *2|지난주에 *2|오랜만에 *2|퇴근하고 |'
    '휴가 때 '
)
WHO = (
    '*4|친구랑 *4|가족이랑 *3|혼자 *3|부모님이랑 *2|동료랑 *2|동생이랑 *2|남편이랑 *2|'
    '아이랑 |후배랑 '
)
WHERE = (
    '동네 *4|회사 앞 *3|집 근처 *3|역 앞 *3|학교 앞 *2|시장 안 *2|시내 *2|공원 옆 |'
    '골목 안 |백화점 '
)

# place: its menus, what is good about them, what is bad about them (TASTE goes with all of them)
PLACES = {
    '한식집': (
        '김치찌개*4|된장찌개*3|갈비탕*3|순두부찌개*2|설렁탕*2|육개장*2',
        '진했*2|구수했|깔끔했|깊은 맛이 났',
        '짰*2|싱거웠|밍밍했|느끼했',
    ),
    '분식집': (
        '떡볶이*4|김밥*3|순대*3|라볶이*2|튀김*2|어묵*2',
        '중독적이었*2|감칠맛 있었|간이 좋았|따끈했',
        '식어 있었*2|느끼했|짰|밋밋했',
    ),
    '일식집': (
        '초밥*4|연어덮밥*3|모둠회*3|연어회*2|참치회*2|회덮밥*2',
        '신선했*2|두툼했|정갈했|깔끔했',
        '비렸*2|미지근했|물컹했|말라 있었',
    ),
    '중국집': (
        '짜장면*4|짬뽕*4|볶음밥*3|간짜장*2|잡채밥*2|마파두부',
        '불맛이 좋았*2|감칠맛 있었|담백했|진했',
        '느끼했*2|짰|기름졌|식어 있었',
    ),
    '고깃집': (
        '삼겹살*4|돼지갈비*3|목살*3|항정살*2|소갈비*2|차돌박이*2',
        '육즙이 좋았*2|부드러웠|고소했|쫄깃했',
        '질겼*2|퍽퍽했|기름졌|잡내가 났',
    ),
    '치킨집': (
        '양념치킨*4|후라이드*4|간장치킨*3|파닭*2|마늘치킨*2|순살치킨',
        '바삭했*2|촉촉했|고소했|담백했',
        '눅눅했*2|퍽퍽했|기름졌|식어 있었',
    ),
    '레스토랑': (
        '파스타*4|피자*3|스테이크*3|리조또*2|라자냐*2|뇨끼',
        '풍미가 좋았*2|부드러웠|고소했|고급스러웠',
        '느끼했*2|짰|미지근했|식어 있었',
    ),
    '카페': (
        '아메리카노*4|카페라떼*3|바닐라라떼*3|콜드브루*2|카푸치노*2|카페모카',
        '향이 좋았*2|고소했|진했|부드러웠',
        '밍밍했*2|텁텁했|연했|썼',
    ),
}
TASTE = ('맛있었*3|훌륭했|최고였', '별로였*2|맛없었|실망스러웠')

# aspect: its weight, what is good about it, what is bad about it
ASPECTS = {
    '가격': (4, '저렴했*2|착했*2|괜찮았|만족스러웠', '비쌌*3|부담스러웠|사악했|아쉬웠'),
    '서비스': (
        4, '친절했*3|좋았*2|빨랐|세심했|훌륭했', '불친절했*2|느렸*2|별로였|엉망이었|최악이었'),
    '양': (3, '많았*2|넉넉했*2|후했|만족스러웠', '적었*3|부족했|아쉬웠|섭섭했'),
    '분위기': (3, '좋았*2|아늑했|편안했|근사했|차분했', '어수선했*2|별로였|칙칙했|산만했'),
    '매장': (3, '깨끗했*2|깔끔했|넓었|쾌적했|예뻤', '지저분했*2|좁았|시끄러웠|더러웠|추웠'),
    '자리': (2, '편했*2|넓었|넉넉했|아늑했', '불편했*2|좁았|부족했|비좁았'),
    '주차': (2, '편했*2|쉬웠|수월했|편리했', '힘들었*2|불편했|어려웠|복잡했'),
    '웨이팅': (2, '짧았*2|적었|괜찮았|금방 끝났', '길었*3|심했|힘들었|지루했'),
    '위치': (2, '좋았*2|편했|완벽했|편리했', '애매했*2|별로였|불편했|복잡했'),
}
LUKEWARM = '무난했*3|나쁘지 않았*2|보통이었*2|그저 그랬*2|쏘쏘였'  # of anything

# a tone is an index into these: words before a predicate, and at the start of a body
GOOD, BAD, MEH = range(3)
ADVERB = (
    '*5|정말 *3|진짜 *3|너무 *2|참 |무척 ',
    '*5|너무 *3|좀 *3|진짜 *2|정말 *2',
    '*4|그냥 *3|대체로 *2|뭐 ',
)
BODY_START = (
    '*3|일단 |우선 |무엇보다 ',
    '*3|솔직히 *2|일단 |우선 ',
    '*3|솔직히 |일단 |음 ',
)

# --- what depends on the rating ---
# a fourth rating is one more line in each of these five

RATING_WEIGHTS = {0: 0.25, 1: 0.60, 2: 0.15}
RATING_TONE = {0: BAD, 1: GOOD, 2: MEH}

# the tones of the three clauses of a body, with weights: a mixed review turns once or is lukewarm
CLAUSE_TONES = {
    0: {(BAD, BAD, BAD): 1},
    1: {(GOOD, GOOD, GOOD): 1},
    2: {(GOOD, GOOD, BAD): 3, (BAD, GOOD, GOOD): 2, (GOOD, BAD, BAD): 1, (MEH, MEH, MEH): 3},
}
# {} is the menu, {이/가} the menu and its particle, < the stem of 'to eat', in a café of 'to drink'
FAREWELL = {
    0: (
        '다시는 안 가겠*3|재방문 의사 없*3|돈이 아까웠*3|추천은 못 하겠*2|많이 실망했*2|'
        '두 번은 못 가겠*2|{은/는} 다른 데서 <어야겠*3|{} <으러 또 갈 일은 없겠*2'
    ),
    1: (
        '또 가고 싶*3|다음에 또 가야겠*3|재방문 의사 있*2|주변에 추천하고 싶*2|'
        '기분 좋게 나왔*2|단골 삼고 싶*2|{이/가} 생각나면 또 가야겠*3|'
        '{} <으러 또 가고 싶*2'
    ),
    2: (
        '다시 갈지는 모르겠*3|한 번쯤은 가 볼 만했*3|한 번이면 충분하겠*2|'
        '근처라면 또 갈 수도 있겠*2|{} <으러 일부러 갈 정도는 아니었*2|'
        '다음엔 {} 말고 다른 걸 시켜 봐야겠*2'
    ),
}
# what closes the body and the review
STOP = {
    0: '.*4| ㅠㅠ*3|..*2| ㅡㅡ',
    1: '.*4|!*3| ㅎㅎ*2|~*2|^^| ㅋㅋ',
    2: '.*4|..*2| ㅎㅎ| ㅠㅠ',
}


# --- particles ---

def josa(word, pair):
    """The particle that fits a Hangul word: of '이/가' it is 이 after 김밥, 가 after 커피.

    Unicode orders syllables by initial, vowel, final. Of the 28 finals the 0th is none, the 8th ㄹ.
    """
    closed, opened = pair.split('/')
    final = (ord(word[-1]) - ord('가')) % 28
    if final == 0 or (final == 8 and closed == '으로'):
        return opened
    return closed


def attach(word, particle):
    """The word and its particle: a pair as '이/가', or one that fits every word, as '도'."""
    return word + (josa(word, particle) if '/' in particle else particle)


# --- the grammar ---
# a node is a string: itself; or a tuple: one node after another; or a Choice: the throw of a die

class Choice:
    def __init__(self, options):
        """options: (weight, node) pairs; the weights need not sum to one."""
        weights, self.nodes = zip(*options)
        total = sum(weights)
        self.p = [weight / total for weight in weights]
        self.bits = [-math.log2(p) for p in self.p]
        self.steps = list(accumulate(self.p))[:-1]

    def face(self, u):
        """The face on which a uniform number u in [0, 1) falls."""
        return bisect(self.steps, u)


def parse(text):
    """'어제 *3|오늘 ' → [(3, '어제 '), (1, '오늘 ')]"""
    pairs = []
    for alternative in text.split('|'):
        word, _, weight = alternative.partition('*')
        pairs.append((int(weight or 1), word))
    return pairs


@lru_cache(None)
def words(text):
    return Choice(parse(text))


@lru_cache(None)
def clause(noun, tone, predicates, particle):
    """가격이 정말 저렴했: its ending or conjunction comes after it."""
    return attach(noun, particle) + ' ', words(ADVERB[tone]), words(predicates)


def aspect_clause(noun, particle, tone):
    _, good, bad = ASPECTS[noun]
    return clause(noun, tone, (good, bad, LUKEWARM)[tone], particle)


def joined(before, after, end, next_clause):
    """The joint between clauses of the tones before and after, and the second of them.

    end: how a sentence ends; None if it must go on. next_clause: particle → node.
    """
    turns = before != after
    joint = '지만 *2|는데 *2' if turns else '고 *3'
    if end and turns:
        joint += f'|{end}. 다만 |{end}. 근데 '
    elif end:
        joint += f'|{end}. *2'
    particle = '은/는' if turns else '도'
    return words(joint), Choice([(2, next_clause(particle)), (1, next_clause('이/가'))])


@lru_cache(None)
def one_aspect(tone, taken, particle):
    """A clause about any aspect but the one that is taken."""
    options = []
    for noun, (weight, _, _) in ASPECTS.items():
        if noun != taken:
            options.append((weight, (aspect_clause(noun, particle, tone),)))
    return Choice(options)


@lru_cache(None)
def two_aspects(first, second, particle):
    """Two clauses of these tones. The second die lacks the face that the first one showed."""
    options = []
    for noun, (weight, _, _) in ASPECTS.items():
        rest = joined(first, second, None, partial(one_aspect, second, noun))
        options.append((weight, (aspect_clause(noun, particle, first), *rest)))
    return Choice(options)


def opening(place, menu):
    """When, who, where, what, up to the stem of the last predicate."""
    ate = '마셨' if place == '카페' else '먹었'
    to_eat = '마시러' if place == '카페' else '먹으러'
    when = words(WHEN)
    who = words(WHO)
    spot = (words(WHERE), place)
    return Choice([
        (4, (when, who, spot, f'에서 {attach(menu, "을/를")} {ate}')),
        (3, (who, spot, f'에 가서 {attach(menu, "을/를")} 시켰')),
        (2, (when, f'{attach(menu, "이/가")} 생각나서 ', who, spot, '에 갔')),
        (2, (f'{attach(menu, "으로/로")} 유명한 ', spot, '에 ', when, who, '다녀왔')),
        (2, (f'{menu} {to_eat} ', when, spot, '에 ', who, '들렀')),
    ])


def body(rating, end, place, menu):
    """Three clauses, the menu first or last."""
    _, good, bad = PLACES[place]
    taste = (f'{good}|{TASTE[GOOD]}', f'{bad}|{TASTE[BAD]}', LUKEWARM)
    mixed = RATING_TONE[rating] == MEH
    topic = '은/는' if mixed else '이/가'  # 은/는 announces a contrast
    options = []
    for (a, b, c), weight in CLAUSE_TONES[rating].items():
        menu_first = clause(menu, a, taste[a], topic)
        aspects = partial(two_aspects, b, c)
        options.append((3 * weight, (menu_first, joined(a, b, end, aspects))))

        aspects_first = two_aspects(a, b, topic)
        menu_last = partial(clause, menu, c, taste[c])
        options.append((2 * weight, (aspects_first, joined(b, c, end, menu_last))))
    return Choice(options)


def farewell(rating, place, menu):
    to_eat, have_to_eat = ('마시러', '마셔야') if place == '카페' else ('먹으러', '먹어야')
    text = FAREWELL[rating]
    text = text.replace('<으러', to_eat).replace('<어야', have_to_eat)
    text = text.replace('{}', menu)
    for particle in ('이/가', '은/는'):
        text = text.replace('{' + particle + '}', attach(menu, particle))
    return words(text)


@lru_cache(None)
def story(rating, end, place, menu):
    """The tree of every review of this rating, ending, place and menu."""
    tone = RATING_TONE[rating]
    to_body = f'{end}. ' if tone == MEH else f'는데 *3|{end}. *2'
    stop = words(STOP[rating])
    return (
        opening(place, menu), words(to_body),
        words(BODY_START[tone]), body(rating, end, place, menu), end, stop, ' ',
        farewell(rating, place, menu), end, stop,
    )


def all_themes():
    """What holds throughout a review, as one die: (rating, ending, place, menu)."""
    options = []
    for rating, p in RATING_WEIGHTS.items():
        for end_weight, end in parse(ENDINGS):
            for place, (menus, _, _) in PLACES.items():
                for menu_weight, menu in parse(menus):
                    weight = p * end_weight * menu_weight
                    options.append((weight, (rating, end, place, menu)))
    return Choice(options)


THEMES = all_themes()


# --- writing a review ---

def draw(node, uniform, out):
    """Append the strings of one throw to out. Returns its bits, -log2 of its probability."""
    if type(node) is str:
        out.append(node)
        return 0.0
    if type(node) is tuple:
        return sum([draw(part, uniform, out) for part in node])
    face = node.face(uniform())
    return node.bits[face] + draw(node.nodes[face], uniform, out)


def reviews(n, seed=0):
    """Yield n times (rating, text, bits), where bits is -log2 P(rating, text)."""
    uniform = random.Random(seed).random
    for _ in range(n):
        face = THEMES.face(uniform())
        theme = THEMES.nodes[face]
        out = []
        bits = THEMES.bits[face] + draw(story(*theme), uniform, out)
        yield theme[0], ''.join(out), bits
