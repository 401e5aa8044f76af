"""Downloads from a real server on this machine: redirects, failures, broken connections, lies."""
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers

from parts import hub as client
from parts.corpus import read_split
from parts.errors import UserError
from parts.vocabulary import load_vocabulary

SCRIPT = Path(__file__).resolve().parent.parent / 'prepare.py'
ROWS = [  # so long that a shard is several blocks of 64 KiB
    (i % 3, f'정말 맛있는 {i}번 국수 ㅋㅋ' + f' 또 {i}' * 20) for i in range(2000)
]
KR3 = '/api/datasets/leey4n/KR3'
LISTING = f'{KR3}/parquet'
STORE = '/store/kr3/0'


def parquet(rows):
    """A parquet file as KR3's: three columns, the last an index that nobody needs."""
    columns = {
        'Rating': [rating for rating, _ in rows],
        'Review': [text for _, text in rows],
        '__index_level_0__': list(range(len(rows))),
    }
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file, compression='none')
    return file.getvalue()


SHARDS = [parquet(ROWS[:1200]), parquet(ROWS[1200:])]
RAW = parquet([(1, f'날것 {i}') for i in range(100)])


# --- the server ---

class Hub(ThreadingHTTPServer):
    """answers[path] is a list of answers: one for each request, the last one for ever.

    An answer is bytes, or a function that sends what it likes to the handler of the request.
    asked holds the (path, headers) of every request, in order.
    """
    daemon_threads = True

    def __init__(self):
        self.answers = {}
        self.asked = []
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        pass  # a client that hangs up is part of the play

    def count(self, path):
        return sum(asked == path for asked, _ in self.asked)

    def ranges(self, path):
        """The part of the file that each request for path asked for."""
        return [headers.get('Range') for asked, headers in self.asked if asked == path]

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path, [status(404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer(self)
        else:
            send(self, answer)


def send(handler, body, code=200, cut=None, **headers):
    """Send body, or the part of it that a Range asks for. cut: hang up at this byte of it."""
    start = 0
    if code == 200 and 'Range' in handler.headers:
        start = int(handler.headers['Range'].removeprefix('bytes=').removesuffix('-'))
    sent = {'Content-Length': len(body) - start}
    if start:
        code = 206
        sent['Content-Range'] = f'bytes {start}-{len(body) - 1}/{len(body)}'
    sent |= {name.replace('_', '-'): value for name, value in headers.items()}
    handler.send_response(code)
    for name, value in sent.items():
        handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body[start:cut])
    if cut is not None:
        handler.close_connection = True


# answers, made beforehand

def status(code, body=b''):
    def answer(handler):
        send(handler, body, code)
    return answer


def cut_at(byte, body, **headers):
    def answer(handler):
        send(handler, body, cut=byte, **headers)
    return answer


def redirect(where, **headers):
    def answer(handler):
        send(handler, b'', 302, Location=where, **headers)
    return answer


def linked(body, where):
    """The Hub's redirect to its store, with the size and sha256 of what is there."""
    sha256 = hashlib.sha256(body).hexdigest()
    return redirect(where, X_Linked_Size=len(body), X_Linked_ETag=f'"{sha256}"')


@pytest.fixture
def hub():
    """A Hub whose viewer lists kr3 in two shards, each behind a redirect, and kr3_raw beside it."""
    server = Hub()
    listing = {}
    for subset, bodies in (('kr3', SHARDS), ('kr3_raw', [RAW])):
        urls = []
        for i, body in enumerate(bodies):
            path = f'{LISTING}/{subset}/train/{i}.parquet'
            server.answers[path] = [linked(body, f'/store/{subset}/{i}')]
            server.answers[f'/store/{subset}/{i}'] = [body]
            urls.append(server.url + path)
        listing[subset] = {'train': urls}
    server.answers[LISTING] = [json.dumps(listing).encode()]
    yield server
    server.stop()


# --- its clients ---

def run(hub, folder, *words, **env):
    """Run prepare.py --mode=manual in folder. Returns (exit status, stdout, stderr)."""
    env = {**os.environ, 'HF_ENDPOINT': hub.url, 'PYTHONIOENCODING': 'utf-8', **env}
    done = subprocess.run([sys.executable, SCRIPT, '--mode=manual', *words], cwd=folder, env=env,
                          capture_output=True, text=True, encoding='utf-8', timeout=60)
    return done.returncode, done.stdout, done.stderr


def works(hub, folder, *words, **env):
    code, out, err = run(hub, folder, *words, **env)
    assert (code, err) == (0, ''), err
    return out


def reviews(folder, name='kr3'):
    """All (rating, text) of a prepared folder, sorted."""
    texts = folder / 'data' / name
    return sorted([*read_split(texts / 'train.txt'), *read_split(texts / 'validation.txt')])


@pytest.fixture
def fetch(hub, tmp_path, monkeypatch):
    """download() of the first shard, in this process, where waiting and LARGEST can be small."""
    monkeypatch.setattr(time, 'sleep', lambda _: None)
    monkeypatch.setattr(client, 'LARGEST', 1 << 20)
    path = tmp_path / 'data/download/x.parquet'

    def fetch(refused=None, url_path=STORE):
        url = hub.url + url_path
        if refused is None:
            assert client.download(url, path).read_bytes() == SHARDS[0]
        else:
            with pytest.raises(UserError, match=refused) as error:
                client.download(url, path)
            assert '\n' not in str(error.value)
            assert not path.exists()
        assert not list(tmp_path.rglob('*.part'))
    return fetch


# --- the whole way ---

def test_kr3_comes_through_everything_and_only_once(hub, tmp_path):
    """A 503 first, redirects, and a connection cut half-way; then a run that asks nothing."""
    hub.answers[LISTING].insert(0, status(503, b'busy'))
    hub.answers[STORE].insert(0, cut_at(100_000, SHARDS[0]))
    out = works(hub, tmp_path, HF_TOKEN='hf_secret')
    assert 'CC BY-NC-SA 4.0' in out
    assert reviews(tmp_path) == sorted(ROWS)
    assert hub.count(LISTING) == 2
    assert hub.ranges(STORE) == [None, 'bytes=65536-']
    assert all(headers['Authorization'] == 'Bearer hf_secret' for _, headers in hub.asked)
    meta = json.loads((tmp_path / 'data/kr3/manual/meta.json').read_text('utf-8'))
    assert meta['sources'][0]['licence'] == 'CC BY-NC-SA 4.0'

    n_asked = len(hub.asked)
    works(hub, tmp_path, '--val_ratio=0.5')
    assert len(hub.asked) == n_asked
    assert reviews(tmp_path) == sorted(ROWS)


def test_raw_is_what_was_asked_for_by_that_name(hub, tmp_path):
    works(hub, tmp_path, '--source=kr3_raw')
    assert len(reviews(tmp_path, 'kr3_raw')) == 100
    assert hub.count(STORE) == 0


def siblings(*names):
    """The Hub's description of a repository with these files."""
    return json.dumps({'siblings': [{'rfilename': name} for name in names]}).encode()


def test_where_the_viewer_is_away_the_repository_is_read(hub, tmp_path):
    hub.answers[LISTING] = [status(404, b'{"error": "no"}')]
    hub.answers[KR3] = [siblings('README.md', 'kr3.parquet', 'kr3_raw.parquet')]
    hub.answers['/datasets/leey4n/KR3/resolve/main/kr3.parquet'] = [linked(SHARDS[0], STORE)]
    works(hub, tmp_path)
    assert reviews(tmp_path) == sorted(ROWS[:1200])


def test_names_that_climb_out_of_the_folder_lead_nowhere(hub, tmp_path):
    climbing = '../../../../store/kr3/0.parquet'
    hub.answers[LISTING] = [status(404)]
    hub.answers[KR3] = [siblings(climbing)]
    hub.answers['/store/kr3/0.parquet'] = [SHARDS[0]]
    hub.answers[f'/datasets/leey4n/KR3/resolve/main/{climbing}'] = [SHARDS[0]]
    here = tmp_path / 'here'
    here.mkdir()
    run(hub, here)
    assert [file.name for file in tmp_path.iterdir()] == ['here']
    downloads = {file.name for file in (here / 'data/download').iterdir()}
    assert downloads <= {'kr3.json', 'kr3_0000.parquet'}
    for name in ('../up', 'a/..'):
        code, _, err = run(hub, here, '--source=demo', '--n_reviews=50', '--mode=tokenizer',
                           f'--model_name={name}')
        assert code == 2
        assert err.count('\n') == 1
    assert [file.name for file in tmp_path.iterdir()] == ['here']


@pytest.mark.parametrize('subsets, wanted', [
    (['default'], True),
    (['kr3_raw'], False),
    (['a', 'b'], False),
])
def test_the_only_subset_will_do_but_never_raw(hub, subsets, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, 'HUB', hub.url)
    listing = {subset: {'train': [hub.url + STORE]} for subset in subsets}
    hub.answers[LISTING] = [json.dumps(listing).encode()]
    hub.answers[KR3] = [siblings('kr3_raw.parquet')]
    if wanted:
        assert [file.read_bytes() for file in client.dataset('kr3')] == [SHARDS[0]]
    else:
        with pytest.raises(UserError, match='no parquet file of kr3'):
            client.dataset('kr3')
        assert not list(tmp_path.rglob('*.*'))  # nothing that a later run would believe


def test_a_tokenizer_of_a_hub_repository(hub, tmp_path):
    ids = {'<unk>': 0, '</s>': 1, '맛': 2, '있': 3, '맛있': 4, '<unused0>': 5}
    bpe = tokenizers.models.BPE(ids, [('맛', '있')], unk_token='<unk>')
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.add_special_tokens(['</s>', '<unused0>'])
    hub.answers['/owner/model-2/resolve/main/tokenizer.json'] = [redirect('/store/t'), status(404)]
    hub.answers['/store/t'] = [tokenizer.to_str().encode()]
    for _ in range(2):  # the second time from data/download
        out = works(hub, tmp_path, '--mode=tokenizer', '--model_name=owner/model-2',
                    '--source=demo', '--n_reviews=100')
    assert 'owner/model-2: licence' in out
    assert '9 ids' in out
    vocab = load_vocabulary(tmp_path / 'data/demo/tokenizer')
    assert (vocab.eos, vocab.start_ids, vocab.size) == (1, [6, 7, 8, 5], 9)
    assert vocab.encode(['맛있맛</s>'])[0][:2] == [4, 2]


def test_nsmc_is_read_from_what_was_downloaded(hub, tmp_path):
    folder = tmp_path / 'data/download'
    folder.mkdir(parents=True)
    for part, rows in (('train', ROWS[:1500]), ('test', ROWS[1500:])):
        lines = ['id\tdocument\tlabel\n']
        lines += [f'7\t{text}\t{rating}\n' for rating, text in rows]
        lines += ['8\t\t0\n']
        (folder / f'nsmc_ratings_{part}.tsv').write_text(''.join(lines), 'utf-8')
    assert 'CC0 1.0' in works(hub, tmp_path, '--source=nsmc')
    assert reviews(tmp_path, 'nsmc') == sorted(ROWS)
    assert not hub.asked


# --- a server that fails, and one that lies ---

def test_the_shell_sees_a_sentence_and_no_file(hub, tmp_path):
    hub.answers[STORE] = [b'<!DOCTYPE html><title>Sign in</title>']
    code, _, err = run(hub, tmp_path)
    assert code == 2
    assert err.count('\n') == 1
    assert 'web page' in err
    files = [file.name for file in tmp_path.rglob('*') if file.is_file()]
    assert files == ['kr3.json']  # the list of shards, which was right


@pytest.mark.parametrize('answer', [b'<html>', b'[1]', b'{"siblings": []}', status(404)])
def test_a_hub_that_lists_nothing(hub, tmp_path, monkeypatch, answer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, 'HUB', hub.url)
    hub.answers[LISTING] = [answer]
    hub.answers[KR3] = [answer]
    with pytest.raises(UserError, match=KR3):
        client.dataset('kr3')
    assert not list(tmp_path.rglob('*.*'))


def test_a_server_that_is_down_for_good(hub, fetch):
    hub.answers[STORE] = [status(503)]
    fetch(refused='503')
    assert hub.count(STORE) == 6


def test_a_server_that_is_not_there(hub, fetch):
    hub.url = 'http://127.0.0.1:9'
    fetch(refused='cannot be fetched')


def test_no_patience_with_a_plain_no(hub, fetch):
    hub.answers[STORE] = [status(401)]
    fetch(refused='401')
    assert hub.count(STORE) == 1


def test_four_breaks_are_survived(hub, fetch):
    breaks = [cut_at(byte, SHARDS[0]) for byte in (70_000, 140_000, 140_001, 210_000)]
    hub.answers[STORE] = [*breaks, SHARDS[0]]
    fetch()
    assert hub.ranges(STORE) == [
        None, 'bytes=65536-', 'bytes=131072-', 'bytes=131072-', 'bytes=196608-']


def test_a_server_that_cannot_resume_starts_anew(hub, fetch):
    def all_of_it(handler):
        del handler.headers['Range']
        send(handler, SHARDS[0])
    hub.answers[STORE] = [cut_at(100_000, SHARDS[0]), all_of_it]
    fetch()
    assert hub.ranges(STORE)[1] == 'bytes=65536-'


def test_the_part_that_was_not_asked_for_is_refused(hub, fetch):
    def another_part(handler):
        send(handler, SHARDS[0][65_600:], 206, Content_Range='bytes 65600-')
    hub.answers[STORE] = [cut_at(100_000, SHARDS[0]), another_part]
    fetch(refused='another part')


@pytest.mark.parametrize('size', [len(SHARDS[0]) + 10, len(SHARDS[0]) - 10])
def test_a_wrong_length_on_the_redirect(hub, fetch, size):
    hub.answers['/a'] = [redirect(STORE, X_Linked_Size=size)]
    fetch(refused='were to come', url_path='/a')


def test_a_length_that_never_comes(hub, fetch):
    size = len(SHARDS[0])
    too_short = cut_at(size, SHARDS[0], Content_Length=size + 10)
    hub.answers[STORE] = [too_short, status(416)]
    fetch(refused='416')
    hub.answers[STORE] = [cut_at(700, SHARDS[0], Content_Length=size + 10)]
    fetch(refused='broke five times')


def test_a_checksum_that_does_not_match(hub, fetch):
    body = bytearray(SHARDS[0])
    body[2000] ^= 1
    hub.answers['/a'] = [linked(SHARDS[0], '/b')]
    hub.answers['/b'] = [bytes(body)]
    fetch(refused='checksum', url_path='/a')
    hub.answers['/b'] = [SHARDS[0]]
    fetch(url_path='/a')


@pytest.mark.parametrize('page', [b'<html>', b'\n <!DOCTYPE html>', b'{"error": "gone"}', b''])
def test_something_else_in_place_of_parquet(hub, fetch, page):
    hub.answers[STORE] = [page]
    fetch(refused='not the file')


def test_a_web_page_is_no_table_either(hub, tmp_path):
    hub.answers['/page'] = [b'<!DOCTYPE html>']
    with pytest.raises(UserError, match='web page'):
        client.download(f'{hub.url}/page', tmp_path / 'nsmc.tsv')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('chunked', [True, False])
def test_an_endless_body_ends(hub, fetch, chunked):
    block = b'PAR1' * (1 << 14)  # 65,536 bytes, in hexadecimal 10000

    def endless(handler):
        handler.send_response(200)
        if chunked:
            handler.send_header('Transfer-Encoding', 'chunked')
        else:
            handler.send_header('Connection', 'close')
        handler.end_headers()
        while True:
            handler.wfile.write(b'10000\r\n' + block + b'\r\n' if chunked else block)

    hub.answers[STORE] = [endless]
    fetch(refused='were to come')


def test_redirects_in_a_circle(hub, fetch):
    hub.answers['/a'] = [redirect('/b')]
    hub.answers['/b'] = [redirect('/a')]
    fetch(refused='redirects', url_path='/a')


def test_a_redirect_off_the_web(hub, fetch):
    hub.answers['/a'] = [redirect('file:///etc/hostname')]
    fetch(refused='cannot be fetched', url_path='/a')


def test_the_token_is_for_the_hub_alone(hub, fetch, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', ' hf_secret\n')
    other = Hub()
    other.answers['/x'] = hub.answers[STORE]
    hub.answers['/a'] = [redirect(f'{other.url}/x')]
    monkeypatch.setattr(client, 'HUB', hub.url)
    fetch(url_path='/a')
    (_, to_hub), = hub.asked
    (_, to_other), = other.asked
    assert to_hub['Authorization'] == 'Bearer hf_secret'
    assert 'Authorization' not in to_other

    # a name that merely begins like the Hub's is not the Hub
    monkeypatch.setattr(client, 'HUB', hub.url[:-1])
    client.get(hub.url + STORE, {}).close()
    _, headers = hub.asked[-1]
    assert 'Authorization' not in headers
    other.stop()
