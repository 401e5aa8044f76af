"""What is fetched: from a server on this machine that answers as the Hub does."""
import hashlib
import io
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from conftest import run

from parts import corpus
from parts.corpus import NotFound, hub_file, is_repository, plain_file, read_split
from parts.errors import UserError
from parts.vocabulary import load_vocabulary

ROWS = [(i % 3, f'정말 맛있는 {i}번 국수 ㅋㅋ') for i in range(300)]
KR3 = '290dc88' + 33 * '0'  # the commit of kr3 that is pinned, by its first digits
RAW = 'ca30a6074c6a66a480c5df319391d03d8a5a80c6'


def parquet(rows):
    """A parquet file as KR3's: three columns, the last an index that nobody needs."""
    columns = {
        'Rating': [rating for rating, _ in rows],
        'Review': [text for _, text in rows],
        '__index_level_0__': list(range(len(rows))),
    }
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


class Hub(ThreadingHTTPServer):
    """files[path] is a body, or the number of a failure. asked is the list of paths, in order."""
    daemon_threads = True

    def __init__(self):
        self.files = {}
        self.asked = []
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.partition('?')[0]
        self.server.asked.append(path)
        body = self.server.files.get(path, 404)
        failure = body if isinstance(body, int) else None
        body = b'' if failure else body
        self.send_response(failure or 200)
        if '/resolve/' in path:
            self.send_header('X-Repo-Commit', path.split('/resolve/')[1].split('/')[0])
            self.send_header('ETag', f'"{hashlib.sha1(body).hexdigest()}"')
        if failure == 404:
            self.send_header('X-Error-Code', 'EntryNotFound')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path):
    """A Hub with KR3: kr3.parquet in one commit and kr3_raw.tsv in an older one."""
    server = Hub()
    commits = [{'id': commit, 'title': '', 'message': '', 'date': '2023-07-19T00:00:00.000Z',
                'authors': []} for commit in ('f' * 40, KR3, RAW)]
    server.files = {
        '/api/datasets/leey4n/KR3/commits/main': json.dumps(commits).encode(),
        f'/datasets/leey4n/KR3/resolve/{KR3}/kr3.parquet': parquet(ROWS),
        '/datasets/leey4n/KR3/resolve/other/kr3.parquet': parquet(ROWS[:150]),
        f'/datasets/leey4n/KR3/resolve/{RAW}/kr3_raw.tsv':
            b'Rating\tReview\tRegion\n'
            + ''.join(f'{rating}\t{text}\t서울\n' for rating, text in ROWS[:100]).encode(),
    }
    server.env = {'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path / 'hf'),
                  'HF_HUB_DISABLE_XET': '1'}
    yield server
    server.stop()


def prepare(hub, folder, *words, ok=True):
    return run('prepare.py', '--mode=manual', *words, cwd=folder, env=hub.env, ok=ok)


def reviews(folder):
    return sorted([*read_split(folder / 'train.txt'), *read_split(folder / 'validation.txt')])


# --- the way of each source ---

def test_kr3_is_of_the_pinned_commit_and_fetched_once(hub, tmp_path):
    assert 'CC BY-NC-SA 4.0' in prepare(hub, tmp_path).stdout
    assert reviews(tmp_path / 'data/kr3') == sorted(ROWS)
    hub.files.clear()
    prepare(hub, tmp_path, '--val_ratio=0.5')
    assert sum('KR3' in path for path in hub.asked) == 3  # the commits, the file's head, the file
    assert reviews(tmp_path / 'data/kr3') == sorted(ROWS)


def test_another_revision_is_named(hub, tmp_path):
    prepare(hub, tmp_path, '--revision=other')
    assert reviews(tmp_path / 'data/kr3') == sorted(ROWS[:150])


def test_kr3_raw_is_of_the_commit_that_had_it(hub, tmp_path):
    prepare(hub, tmp_path, '--source=kr3_raw')
    assert reviews(tmp_path / 'data/kr3_raw') == sorted(ROWS[:100])


def test_a_tokenizer_of_a_hub_repository(hub, tmp_path):
    ids = {'<unk>': 0, '</s>': 1, '맛': 2, '있': 3, '맛있': 4, '<unused0>': 5}
    bpe = tokenizers.models.BPE(ids, [('맛', '있')], unk_token='<unk>')
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.add_special_tokens(['</s>', '<unused0>'])
    hub.files['/owner/model-2/resolve/main/tokenizer.json'] = tokenizer.to_str().encode()
    out = prepare(hub, tmp_path, '--mode=tokenizer', '--model_name=owner/model-2',
                  '--source=demo', '--n_reviews=100').stdout
    assert 'owner/model-2: commit main; licence' in out
    vocab = load_vocabulary(tmp_path / 'data/demo/tokenizer')
    assert (vocab.eos, vocab.start_ids, vocab.size) == (1, [6, 7, 8, 5], 9)
    assert vocab.encode(['맛있맛</s>'])[0][:2] == [4, 2]


@pytest.mark.parametrize('name', ['../up', 'a/..', 'a/b/c', 'http://a/b'])
def test_a_name_that_is_no_repository_asks_nobody(name):
    assert not is_repository(name)


def test_a_server_that_fails_is_a_sentence(hub, tmp_path):
    hub.files[f'/datasets/leey4n/KR3/resolve/{KR3}/kr3.parquet'] = 403
    prepare(hub, tmp_path, ok=False)
    assert not list((tmp_path / 'data').rglob('*.txt*'))


# --- not found, and any other failure ---

ASK = """
from parts.corpus import NotFound, hub_file
from parts.errors import UserError
try:
    hub_file('owner/model', 'meta.json')
except NotFound:
    print('not found')
except UserError:
    print('failed')
"""


@pytest.mark.parametrize('answer, said', [(404, 'not found'), (403, 'failed'), (418, 'failed')])
def test_what_is_not_there_is_told_from_what_failed(hub, tmp_path, answer, said):
    hub.files['/owner/model/resolve/main/meta.json'] = answer
    (tmp_path / 'ask.py').write_text(ASK)
    paths = {'PYTHONPATH': os.getcwd()}
    assert run(tmp_path / 'ask.py', env=hub.env | paths).stdout == f'{said}\n'


def test_nobody_there_is_no_not_found(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(time, 'sleep', int)  # it asks again, later and later
    with pytest.raises(UserError) as error:
        hub_file('owner/model', 'meta.json')
    assert not isinstance(error.value, NotFound)
    assert '\n' not in str(error.value)


# --- plain addresses ---

def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, 'DOWNLOADS', tmp_path / 'download')
    return tmp_path / 'download'


def test_a_plain_file_is_the_one_that_is_known_and_fetched_once(hub, downloads):
    hub.files['/x'] = b'text'
    for _ in range(2):
        path = plain_file(f'{hub.url}/x', 'x.txt', sha256(b'text'))
        assert path.read_bytes() == b'text'
    assert hub.asked == ['/x']


@pytest.mark.parametrize('answer', [b'<html>', b'', 404, 500])
def test_another_file_is_refused_and_not_kept(hub, downloads, answer):
    hub.files['/x'] = answer
    with pytest.raises(UserError):
        plain_file(f'{hub.url}/x', 'x.txt', sha256(b'text'))
    assert not downloads.exists()


def test_a_file_of_that_name_is_not_written_over(hub, downloads):
    hub.files['/x'] = b'text'
    downloads.mkdir()
    (downloads / 'x.txt').write_bytes(b'mine')
    with pytest.raises(UserError, match='delete or rename'):
        plain_file(f'{hub.url}/x', 'x.txt', sha256(b'text'))
    assert (downloads / 'x.txt').read_bytes() == b'mine'


def test_every_plain_file_is_of_a_commit_and_has_a_sha256():
    for files in corpus.PLAIN_FILES.values():
        for url, _, digest in files:
            assert any(len(part) == 40 for part in url.split('/')), url
            assert len(digest) == 64
