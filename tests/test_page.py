"""The page in headless Chromium: its numbers against Python's, and a visit as a person pays."""
import copy
import json
import random
import re
import shutil
from itertools import islice

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from model import Config, build, generate
from parts.corpus import cleaner, read_split
from parts.errors import UserError
from parts.folder import load_model
from parts.page import language_of_pieces, round_rows, write_page
from parts.scoring import rating_log_probs, surprise
from parts.vocabulary import HubTokenizer, load_vocabulary

CHROMIUM = [shutil.which(name) for name in ('chromium', 'chromium-browser', 'google-chrome')]
needs_chromium = pytest.mark.skipif(
    not any(CHROMIUM) or not shutil.which('chromedriver'),
    reason='it needs Chromium and its driver; on Debian: apt-get install chromium chromium-driver')

TEXTS = [
    '김치찌개가 정말 맛있었어요.',
    '',
    'ㅋㅋㅋㅋ 대박',
    '🍜 라면 👍🏽',
    '<script>alert("1")</script>',
    '뷁 쀍 龍',
    '아 ' * 20,
]


# --- a browser ---

class Browser:
    """Chromium without a window, driven by selenium."""

    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = next(path for path in CHROMIUM if path)
        for flag in ('--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
                     '--window-size=1200,1250', f'--user-data-dir={profile}'):
            options.add_argument(flag)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        service = webdriver.ChromeService(shutil.which('chromedriver'))
        self.driver = webdriver.Chrome(options, service)

    def run(self, script, *args):
        """Run JavaScript in the page; what it returns."""
        return self.driver.execute_script(script, *args)

    def wait(self, condition):
        """Wait until this JavaScript expression is true."""
        waiting = WebDriverWait(self.driver, 20, poll_frequency=0.05)
        waiting.until(lambda driver: driver.execute_script(f'return Boolean({condition})'),
                      f'20 seconds, and not yet: {condition}')

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def type(self, selector, text):
        self.find(selector).clear()
        self.find(selector).send_keys(text)

    def press(self, key):
        webdriver.ActionChains(self.driver).send_keys(key).perform()

    def point_at(self, selector):
        webdriver.ActionChains(self.driver).move_to_element(self.find(selector)).perform()

    def complaints(self):
        """What the page has written to the console since last asked: errors, refused requests."""
        return [line['message'] for line in self.driver.get_log('browser')]


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp('profile'))
    yield browser
    browser.driver.quit()


@pytest.fixture(scope='module')
def decoder(models):
    model, meta = load_model(models / 'decoder')
    return model, meta, load_vocabulary(models / 'decoder')


def open_page(browser, path, model, meta, vocabulary):
    """Write the page and open it; it has then read the beginning that stands in it."""
    write_page(model, vocabulary, meta, path)
    browser.driver.get(path.as_uri())
    browser.wait("tokens.length > 1 && tokens.at(-1).written === clean($('prompt').value)")
    assert browser.complaints() == []


def rounded(model):
    """The model with the weights that stand in its page."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                rows, scale = round_rows(parameter)
                parameter.copy_(rows * scale[:, None])
    return model


def page_logits(browser, ids):
    """(T, V) as the page computes them."""
    return torch.tensor(browser.run('''
        const past = [];
        for (const id of arguments[0]) past.push(hidden(id, past));
        return past.map(({ streams }) => Array.from(logits(streams[n_layers])));
    ''', ids))


@torch.inference_mode()
def largest_difference(browser, model, vocabulary):
    """Between the page's logits and the model's: ten texts, every id at every place."""
    largest = 0
    for n, ids in enumerate(vocabulary.encode(TEXTS)):
        ids = [vocabulary.eos, vocabulary.rating_ids[n % 3], *ids]
        ours = model(torch.tensor([ids]))[0]
        largest = max(largest, (page_logits(browser, ids) - ours).abs().max().item())
    return largest


# --- the numbers ---

@needs_chromium
def test_logits_are_those_of_the_rounded_model(browser, decoder, tmp_path):
    model, meta, vocabulary = decoder
    open_page(browser, tmp_path / 'page.html', model, meta, vocabulary)
    assert largest_difference(browser, rounded(model), vocabulary) < 1e-4


@needs_chromium
def test_a_window_shorter_than_the_text(browser, decoder, tmp_path):
    _, meta, vocabulary = decoder
    torch.manual_seed(0)
    config = Config(vocabulary.size, d_model=32, d_ffn=48, n_layers=2, nhead=4, chunk_size=5,
                    eos=vocabulary.eos, bos=vocabulary.start_ids[-1])
    model = build(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    open_page(browser, tmp_path / 'page.html', model, meta, vocabulary)
    assert largest_difference(browser, rounded(model), vocabulary) < 1e-4


def test_8_bits_cost_next_to_nothing(decoder, demo):
    model, _, vocabulary = decoder
    texts = list(islice(read_split(demo / 'validation.txt'), 100))
    ids = vocabulary.encode([text for _, text in texts])
    framed = [[vocabulary.eos, vocabulary.rating_ids[rating], *row, vocabulary.eos]
              for (rating, _), row in zip(texts, ids)]
    exact = sum(nats.sum() for nats, _ in surprise(model, framed))
    in_8_bits = sum(nats.sum() for nats, _ in surprise(rounded(model), framed))
    assert abs(in_8_bits / exact - 1) < 0.01


@needs_chromium
def test_the_likeliest_continuation_is_that_of_python(browser, decoder, tmp_path):
    model, meta, vocabulary = decoder
    open_page(browser, tmp_path / 'page.html', model, meta, vocabulary)
    ours = browser.run("""
        vocabulary.banned.push(eos);    // so that there are 50 tokens, and not one text
        $('temperature').value = 0;
        mine = 0;
        const written = [];
        while (written.length < 50) {
          written.push(draw(may_follow(tokens.at(-1).views[mine].probs)));
          read(written.at(-1));
        }
        return written;
    """)
    beginning = vocabulary.encode(['김치찌개가'])[0]
    idx = torch.tensor([[vocabulary.eos, vocabulary.rating_ids[0], *beginning]])
    banned = [*vocabulary.banned, vocabulary.eos]
    theirs = generate(rounded(model), idx, 50, banned, temperature=0)
    assert ours == [ids.item() for ids in theirs]


@needs_chromium
def test_fewer_ids_than_the_page_has_lines_are_all_shown(browser, decoder, tmp_path):
    model, meta, vocabulary = decoder
    open_page(browser, tmp_path / 'page.html', model, meta, vocabulary)
    assert browser.run('return likeliest([0.2, 0.5, 0.3], 12)') == [1, 2, 0]


@needs_chromium
def test_temperature_and_top_p_leave_what_sample_py_would_draw_from(browser, decoder, tmp_path):
    model, meta, vocabulary = decoder
    open_page(browser, tmp_path / 'page.html', model, meta, vocabulary)
    logits = torch.randn(vocabulary.size, generator=torch.Generator().manual_seed(0)) * 3
    for temperature, top_p in [(1, 1), (0.5, 0.9), (1.5, 0.3), (0, 0.9)]:
        ours = browser.run("""
            $('temperature').value = arguments[1];
            $('top_p').value = arguments[2];
            return Array.from(may_follow(softmax(Float64Array.from(arguments[0]))));
        """, logits.tolist(), temperature, top_p)
        ours = torch.tensor(ours, dtype=torch.float)
        assert ours[vocabulary.banned].sum() == 0
        scores = logits.index_fill(0, torch.tensor(vocabulary.banned), -torch.inf)
        probs = (scores == scores.max()).float()
        if temperature > 0:
            probs = (scores / temperature).softmax(0)
        likelier = torch.stack([probs[probs > p].sum() for p in probs])
        probs[likelier >= top_p] = 0
        torch.testing.assert_close(ours, probs / probs.sum(), atol=1e-6, rtol=1e-4)


# --- the vocabulary ---

def odd_texts():
    """Texts that nobody would type, and TEXTS."""
    letters = ['가', '각', '힣', 'ㅋ', 'ㅠ', '\u1100', '\u1161', '\u11a8', 'a', 'Z', 'é', 'e\u0301']
    letters += ['▁', '_', '0', '12', '<', '</s>', '<pos>', '<0x41>', '"', "'", '&', '\\']
    letters += ['🍜', '👨‍👩‍👧', '龍', '\ufeff', '\ufffd', '\u200b', '\x00', '\x1b', '\x7f']
    letters += [' ', ' ', '  ', '\t', '\n', '\x1f', '\x85', '\xa0', '\u3000', '\u2028']
    chance = random.Random(0)
    made_up = [''.join(chance.choices(letters, k=chance.randrange(30))) for _ in range(300)]
    return TEXTS + made_up


@needs_chromium
@pytest.mark.parametrize('name', ['decoder', 'manual'])
@pytest.mark.parametrize('unit', ['line', 'file'])
def test_texts_have_the_same_ids_and_ids_the_same_text(browser, models, tmp_path, name, unit):
    model, meta = load_model(models / name)
    vocabulary = load_vocabulary(models / name)
    open_page(browser, tmp_path / 'page.html', model, {**meta, 'unit': unit}, vocabulary)
    texts = [cleaner(unit)(text) for text in odd_texts()]
    assert browser.run('return arguments[0].map(clean)', odd_texts()) == texts
    ids = vocabulary.encode(texts)
    assert browser.run('return arguments[0].map(encode)', texts) == ids
    decoded = [vocabulary.decode(row) for row in ids]
    assert browser.run('return arguments[0].map(decode)', ids) == decoded


# --- a visit ---

@needs_chromium
@pytest.mark.parametrize('reads', [False, True])
def test_a_typed_sentence_is_rated_as_eval_py_rates_it(browser, decoder, tmp_path, reads):
    model, meta, vocabulary = decoder
    model = copy.deepcopy(model)
    model.config.reads_ratings = reads
    open_page(browser, tmp_path / 'page.html', model, meta, vocabulary)
    text = '김치찌개가 너무 짰고 서비스도 불친절했어요.'
    browser.type('#prompt', text)
    browser.wait(f"tokens.at(-1).written === '{text}'")
    ids = vocabulary.encode([text])
    with torch.inference_mode():
        log_probs = rating_log_probs(rounded(model), ids, vocabulary.rating_ids)
    probs = log_probs.softmax(dim=1)[0].tolist()
    negative, positive, ambiguous = (f'{100 * p:.{1 if p < 0.0995 else 0}f}%' for p in probs)
    assert browser.run("return $('verdict').textContent").endswith(
        f'부정 negative {negative}, 긍정 positive {positive}, 보통 ambiguous {ambiguous}')


@needs_chromium
def test_a_visit(browser, decoder, tmp_path):
    open_page(browser, tmp_path / 'page.html', *decoder)

    # --- a review is written, one token after the other ---
    browser.find('#ratings input[value="1"]').click()
    browser.wait('mine === 1')
    length = browser.run('return tokens.length')
    browser.find('#step').click()
    browser.wait(f'tokens.length === {length + 1}')
    before = browser.run('return tokens.at(-1).written')
    browser.run("$('pace').value = 60")
    browser.find('#write').click()
    browser.wait('closed || tokens.length > 100')
    browser.find('#stop').click()
    review = browser.run('return tokens.at(-1).written')
    assert review.startswith(before) and before.startswith('김치찌개가')
    browser.wait(f"$('finished').textContent.startsWith({json.dumps(review)})")
    assert '<pos>' in browser.run("return $('tokens').textContent")

    # --- the token under the pointer is looked into, then its neighbour, by keyboard ---
    browser.point_at('#tokens span:nth-child(4)')
    browser.wait('here === 4')
    browser.find('#tokens span:nth-child(3)').click()
    browser.press(Keys.ARROW_RIGHT)
    browser.wait('here === 4 && document.activeElement.ariaSelected === "true"')
    config = decoder[0].config
    assert browser.run("return $('heads').rows.length") == 1 + config.n_layers * config.nhead
    assert browser.run("return $('heads').rows[1].cells.length") == 1 + 5 + 1
    assert browser.run("return $('layers').rows.length") == 1 + config.n_layers

    # --- a slider moves the bars at once; the first of them is what the last layer says ---
    shares = "return Array.from($('next').children, bar => bar.lastChild.textContent)"
    usual = browser.run(shares)
    assert len(usual) == 12
    browser.run("$('temperature').value = 2; $('temperature').dispatchEvent(new Event('input'))")
    assert browser.run(shares) != usual
    assert browser.run("return $('layers').rows[2].cells[1].textContent").startswith(
        browser.run("return $('next').children[0].firstChild.textContent"))

    # --- another token is chosen in its place, and the review goes on from there ---
    other = browser.run("return $('next').children[1].firstChild.textContent")
    browser.find('#next button:nth-child(2)').click()
    browser.wait('tokens.length === 6 || closed')
    assert browser.run('return closed ? "</s>" : labels[tokens.at(-1).views[mine].id]') == other
    assert browser.complaints() == []
    assert browser.run("return performance.getEntriesByType('resource').length") == 0


@needs_chromium
def test_writing_waits_until_the_beginning_is_read(browser, decoder, tmp_path):
    open_page(browser, tmp_path / 'page.html', *decoder)
    beginning = ' '.join(['어제 친구랑'] * 8)
    browser.run('''
        $('prompt').value = arguments[0];
        $('prompt').dispatchEvent(new Event('input'));
        $('step').click();
    ''', beginning)
    browser.wait("$('finished').textContent")
    assert browser.run('return tokens.at(-1).written').startswith(beginning)


@needs_chromium
def test_what_is_typed_stays_text(browser, decoder, tmp_path):
    model, meta, vocabulary = decoder
    attack = '</script><script>window.bad = 1</script><img src=x onerror="window.bad = 1">'
    meta = {**meta, 'sources': [{'name': attack, 'licence': '{{folder}}'}]}
    open_page(browser, tmp_path / 'page.html', model, meta, vocabulary)
    browser.type('#prompt', attack)
    browser.wait(f"tokens.at(-1).written === {json.dumps(attack)}")
    assert attack in browser.run("return $('tokens').textContent")
    assert attack in browser.run("return $('about').textContent")
    assert browser.run("return document.images.length + document.scripts.length") == 2
    assert browser.run('return window.bad') is None


@needs_chromium
def test_a_model_of_texts_without_ratings_speaks_of_none(browser, songs, tmp_path):
    model, meta = load_model(songs)
    open_page(browser, tmp_path / 'page.html', model, meta, load_vocabulary(songs))
    browser.find('#step').click()
    browser.wait("$('finished').textContent")
    assert 'rating' not in browser.run('return document.body.innerText')
    assert '평점' not in browser.run('return document.body.innerText')
    assert browser.run("return $('tokens').textContent").startswith('<s>')
    assert browser.complaints() == []


@pytest.mark.parametrize('name', ['songs', 'demo'])
def test_the_page_is_in_the_language_of_the_text(songs, decoder, tmp_path, name):
    model, meta, vocabulary = decoder
    if name == 'songs':
        (model, meta), vocabulary = load_model(songs), load_vocabulary(songs)
    write_page(model, vocabulary, meta, tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text('utf-8')
    assert f'<html lang={"en" if name == "songs" else "ko"}>' in page
    before, _ = page.split('<script id=folder')
    without = re.sub('<span lang=ko>.*?</span>', '', before)  # in English these are hidden
    assert not re.search('[가-힣]', without)
    assert language_of_pieces(['▁맛', '▁the', '있', '!', '']) == 'ko'


# --- mistakes ---

def test_what_has_no_page_is_one_sentence(decoder, models, tmp_path):
    model, meta, vocabulary = decoder
    ffn, ffn_meta = load_model(models / 'ffn')
    hub_tokenizer = HubTokenizer(vocabulary.as_tokenizer().to_str().encode())
    (tmp_path / 'file').touch()
    for page, told in (
            ((ffn, vocabulary, ffn_meta, tmp_path / 'page.html'), 'takes a decoder'),
            ((model, hub_tokenizer, meta, tmp_path / 'page.html'), 'a tokenizer of the Hub'),
            ((model, vocabulary, meta, tmp_path / 'file' / 'page.html'), 'cannot be written'),
            ((model, vocabulary, meta, tmp_path), 'cannot be written')):
        with pytest.raises(UserError, match=told):
            write_page(*page)
    assert not (tmp_path / 'page.html').exists()
