"""The Hub path against a real server on this machine: redirects, failures, broken connections, and lies."""
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

import prepare
from data import hub as client

SCRIPT = Path(prepare.__file__).resolve()
ROWS = [(i % 3, f'정말 맛있는 {i}번 국수 ㅋㅋ' + f' 또 {i}' * 20) for i in range(2000)]  # shards of several blocks of 64 KiB


def shard(rows):
    """A parquet file as KR3's: three columns, the last an index nobody needs."""
    out = io.BytesIO()
    columns = {'Rating': [r for r, _ in rows], 'Review': [t for _, t in rows], '__index_level_0__': list(range(len(rows)))}
    pyarrow.parquet.write_table(pyarrow.table(columns), out, compression='none')
    return out.getvalue()


SHARDS = [shard(ROWS[:1200]), shard(ROWS[1200:])]
RAW = shard([(1, f'날것 {i}') for i in range(100)])


class Hub(ThreadingHTTPServer):
    """What each path answers: say[path] is a list of answers, one a request, the last one for ever. An answer is a function of the
    request, or bytes. asked holds every (path, headers) in order."""
    daemon_threads = True

    def __init__(self):
        self.say, self.asked = {}, []
        super().__init__(('127.0.0.1', 0), Answer)
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        pass  # a client that hangs up is part of the play

    def count(self, path):
        return sum(p == path for p, _ in self.asked)


class Answer(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        answers = self.server.say.get(self.path, [lambda to: send(to, b'', 404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self) if callable(answer) else send(self, answer)


def send(to, body, status=200, cut=None, **headers):
    """Answer with body, or with the part of it that a Range asks for. cut: hang up after so many bytes."""
    start = int(to.headers['Range'][6:-1]) if status == 200 and 'Range' in to.headers else 0
    more = {'Content-Range': f'bytes {start}-{len(body) - 1}/{len(body)}'} if start else {}
    to.send_response(206 if start else status)
    for name, value in {'Content-Length': len(body) - start, **more, **{k.replace('_', '-'): v for k, v in headers.items()}}.items():
        to.send_header(name, str(value))
    to.end_headers()
    to.wfile.write(body[start:cut])
    to.close_connection = to.close_connection or cut is not None


def turn(where, **headers):
    return lambda to: send(to, b'', 302, Location=where, **headers)


def linked(body, where):
    """The Hub's redirect to its store, with the size and sha256 of what lies there."""
    return turn(where, X_Linked_Size=len(body), X_Linked_ETag=f'"{hashlib.sha256(body).hexdigest()}"')


@pytest.fixture
def hub():
    """A Hub whose viewer lists KR3 in two shards, each behind a redirect, and kr3_raw beside it."""
    server = Hub()
    names = {('kr3', 0): SHARDS[0], ('kr3', 1): SHARDS[1], ('kr3_raw', 0): RAW}
    listing = {'kr3': {'train': []}, 'kr3_raw': {'train': []}}
    for (subset, i), body in names.items():
        listing[subset]['train'].append(f'{server.url}/api/datasets/leey4n/KR3/parquet/{subset}/train/{i}.parquet')
        server.say[f'/api/datasets/leey4n/KR3/parquet/{subset}/train/{i}.parquet'] = [linked(body, f'/store/{subset}/{i}')]
        server.say[f'/store/{subset}/{i}'] = [body]
    server.say['/api/datasets/leey4n/KR3/parquet'] = [json.dumps(listing).encode()]
    yield server
    server.shutdown()
    server.server_close()


def run(hub, folder, *words, **env):
    done = subprocess.run([sys.executable, SCRIPT, '--mode=manual', *words], cwd=folder, capture_output=True, text=True, encoding='utf-8',
                          env={**os.environ, 'HF_ENDPOINT': hub.url, 'PYTHONIOENCODING': 'utf-8', **env}, timeout=60)
    return done.returncode, done.stdout, done.stderr


def works(hub, folder, *words, **env):
    status, out, err = run(hub, folder, *words, **env)
    assert (status, err) == (0, ''), err
    return out


def read(folder, name='kr3'):
    return sorted(pair for side in ('train', 'validation') for pair in prepare.read_split(folder / f'data/{name}/{side}.txt'))


STORE = '/store/kr3/0'


@pytest.fixture
def fetch(hub, tmp_path, monkeypatch):
    """download() of the first shard in this process, where waiting and the largest file can be made small."""
    monkeypatch.setattr(time, 'sleep', lambda _: None)
    monkeypatch.setattr(client, 'LARGEST', 1 << 20)
    path = tmp_path / 'data/download/x.parquet'

    def fetch(refused=None, at=STORE):
        if refused is None:
            assert client.download(hub.url + at, path).read_bytes() == SHARDS[0]
        else:
            with pytest.raises(OSError, match=refused) as e:
                client.download(hub.url + at, path)
            assert '\n' not in str(e.value)
            assert not path.exists()
        assert not list(tmp_path.rglob('*.part'))
    return fetch


# --- the whole way

def test_kr3_comes_through_everything_and_only_once(hub, tmp_path):
    """A 503 before success, redirects, and a connection cut half-way, in one run; then a run that asks nothing."""
    listing = '/api/datasets/leey4n/KR3/parquet'
    hub.say[listing].insert(0, lambda to: send(to, b'busy', 503))
    hub.say[STORE].insert(0, lambda to: send(to, SHARDS[0], cut=100_000))
    out = works(hub, tmp_path, HF_TOKEN='hf_secret')
    assert 'CC BY-NC-SA 4.0' in out
    assert read(tmp_path) == sorted(ROWS)
    assert hub.count(listing) == 2 and [h.get('Range') for p, h in hub.asked if p == STORE] == [None, 'bytes=65536-']
    assert all(h['Authorization'] == 'Bearer hf_secret' for _, h in hub.asked)
    assert json.loads((tmp_path / 'data/kr3/manual/meta.json').read_text('utf-8'))['sources'][0]['licence'] == 'CC BY-NC-SA 4.0'
    asked = len(hub.asked)
    works(hub, tmp_path, '--val_ratio=0.5')
    assert len(hub.asked) == asked and read(tmp_path) == sorted(ROWS)


def test_raw_is_what_was_asked_for_by_that_name(hub, tmp_path):
    works(hub, tmp_path, '--source=kr3_raw')
    assert len(read(tmp_path, 'kr3_raw')) == 100 and hub.count(STORE) == 0


def test_where_the_viewer_is_away_the_repository_is_read(hub, tmp_path):
    hub.say['/api/datasets/leey4n/KR3/parquet'] = [lambda to: send(to, b'{"error": "no"}', 404)]
    hub.say['/api/datasets/leey4n/KR3'] = [json.dumps({'siblings': [{'rfilename': n} for n in ('README.md', 'kr3.parquet', 'kr3_raw.parquet')]}).encode()]
    hub.say['/datasets/leey4n/KR3/resolve/main/kr3.parquet'] = [linked(SHARDS[0], STORE)]
    works(hub, tmp_path)
    assert read(tmp_path) == sorted(ROWS[:1200])


def test_names_that_climb_out_of_the_folder_lead_nowhere(hub, tmp_path):
    hub.say['/api/datasets/leey4n/KR3/parquet'] = [lambda to: send(to, b'', 404)]
    hub.say['/api/datasets/leey4n/KR3'] = [json.dumps({'siblings': [{'rfilename': '../../../../store/kr3/0.parquet'}]}).encode()]
    hub.say['/store/kr3/0.parquet'] = hub.say['/datasets/leey4n/KR3/resolve/main/../../../../store/kr3/0.parquet'] = [SHARDS[0]]
    (tmp_path / 'here').mkdir()
    run(hub, tmp_path / 'here')
    assert {f.name for f in tmp_path.iterdir()} == {'here'} and {f.name for f in (tmp_path / 'here/data/download').iterdir()} <= {'kr3.json', 'kr3_0000.parquet'}
    for name in ('../up', 'a/..'):
        status, _, err = run(hub, tmp_path / 'here', '--source=demo', '--n_reviews=50', '--mode=tokenizer', f'--model_name={name}')
        assert status == 2 and err.count('\n') == 1
    assert {f.name for f in tmp_path.iterdir()} == {'here'}


@pytest.mark.parametrize('subsets, wanted', [(['default'], True), (['kr3_raw'], False), (['a', 'b'], False)])
def test_the_only_subset_will_do_but_never_raw(hub, subsets, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, 'HUB', hub.url)
    hub.say['/api/datasets/leey4n/KR3/parquet'] = [json.dumps({s: {'train': [hub.url + STORE]} for s in subsets}).encode()]
    hub.say['/api/datasets/leey4n/KR3'] = [json.dumps({'siblings': [{'rfilename': 'kr3_raw.parquet'}]}).encode()]
    if wanted:
        assert [f.read_bytes() for f in client.dataset('kr3')] == [SHARDS[0]]
    else:
        with pytest.raises(OSError, match='no parquet file of kr3'):
            client.dataset('kr3')
        assert not list(tmp_path.rglob('*.*'))  # nothing that a later run would believe


def test_a_tokenizer_of_a_hub_repository(hub, tmp_path):
    t = tokenizers.Tokenizer(tokenizers.models.BPE({'<unk>': 0, '</s>': 1, '맛': 2, '있': 3, '맛있': 4, '<unused0>': 5}, [('맛', '있')], unk_token='<unk>'))
    t.add_special_tokens(['</s>', '<unused0>'])
    hub.say['/owner/model-2/resolve/main/tokenizer.json'] = [turn('/store/t'), lambda to: send(to, b'', 404)]
    hub.say['/store/t'] = [t.to_str().encode()]
    for _ in range(2):  # the second time from data/download
        out = works(hub, tmp_path, '--mode=tokenizer', '--model_name=owner/model-2', '--source=demo', '--n_reviews=100')
    assert 'owner/model-2: licence' in out and '9 ids' in out
    vocab = prepare.load_vocabulary(tmp_path / 'data/demo/tokenizer')
    assert (vocab.eos, vocab.starts, vocab.size) == (1, [6, 7, 8, 5], 9) and vocab.encode(['맛있맛</s>'])[0][:2] == [4, 2]


def test_nsmc_is_read_from_what_was_downloaded(hub, tmp_path):
    folder = tmp_path / 'data/download'
    folder.mkdir(parents=True)
    for part, rows in (('train', ROWS[:1500]), ('test', ROWS[1500:])):
        (folder / f'nsmc_ratings_{part}.tsv').write_text('id\tdocument\tlabel\n' + ''.join(f'7\t{t}\t{r}\n' for r, t in rows) + '8\t\t0\n', 'utf-8')
    assert 'CC0 1.0' in works(hub, tmp_path, '--source=nsmc')
    assert read(tmp_path, 'nsmc') == sorted(ROWS) and not hub.asked


# --- a server that fails, and one that lies

def test_the_shell_sees_a_sentence_and_no_file(hub, tmp_path):
    hub.say[STORE] = [b'<!DOCTYPE html><title>Sign in</title>']
    status, _, err = run(hub, tmp_path)
    assert status == 2 and err.count('\n') == 1 and 'web page' in err
    assert [f.name for f in tmp_path.rglob('*') if f.is_file()] == ['kr3.json']  # the list of shards, which was right


@pytest.mark.parametrize('answer', [b'<html>', b'[1]', b'{"siblings": []}', lambda to: send(to, b'', 404)])
def test_a_hub_that_lists_nothing(hub, tmp_path, monkeypatch, answer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, 'HUB', hub.url)
    hub.say['/api/datasets/leey4n/KR3/parquet'] = hub.say['/api/datasets/leey4n/KR3'] = [answer]
    with pytest.raises(OSError, match='/api/datasets/leey4n/KR3'):
        client.dataset('kr3')
    assert not list(tmp_path.rglob('*.*'))


def test_a_server_that_is_down_for_good(hub, fetch):
    hub.say[STORE] = [lambda to: send(to, b'', 503)]
    fetch('503')
    assert hub.count(STORE) == 6


def test_a_server_that_is_not_there(hub, fetch):
    hub.url = 'http://127.0.0.1:9'
    fetch('cannot be fetched')


def test_no_patience_with_a_plain_no(hub, fetch):
    hub.say[STORE] = [lambda to: send(to, b'', 401)]
    fetch('401')
    assert hub.count(STORE) == 1


def test_four_breaks_are_survived(hub, fetch):
    hub.say[STORE] = [lambda to, cut=cut: send(to, SHARDS[0], cut=cut) for cut in (70_000, 140_000, 140_001, 210_000)] + [SHARDS[0]]
    fetch()
    assert [h.get('Range') for _, h in hub.asked] == [None, 'bytes=65536-', 'bytes=131072-', 'bytes=131072-', 'bytes=196608-']


def test_a_server_that_cannot_resume_starts_anew(hub, fetch):
    def whole(to):
        del to.headers['Range']
        send(to, SHARDS[0])
    hub.say[STORE] = [lambda to: send(to, SHARDS[0], cut=100_000), whole]
    fetch()
    assert hub.asked[1][1]['Range'] == 'bytes=65536-'


def test_the_part_that_was_not_asked_for_is_refused(hub, fetch):
    hub.say[STORE] = [lambda to: send(to, SHARDS[0], cut=100_000), lambda to: send(to, SHARDS[0][65_600:], 206, Content_Range='bytes 65600-')]
    fetch('another part')


@pytest.mark.parametrize('claim', [len(SHARDS[0]) + 10, len(SHARDS[0]) - 10])
def test_a_wrong_length_on_the_redirect(hub, fetch, claim):
    hub.say['/a'] = [turn(STORE, X_Linked_Size=claim)]
    fetch('were to come', '/a')


def test_a_length_that_never_comes(hub, fetch):
    hub.say[STORE] = [lambda to: send(to, SHARDS[0], Content_Length=len(SHARDS[0]) + 10, cut=len(SHARDS[0])), lambda to: send(to, b'', 416)]
    fetch('416')
    hub.say[STORE] = [lambda to: send(to, SHARDS[0], Content_Length=len(SHARDS[0]) + 10, cut=700)]
    fetch('broke five times')


def test_a_checksum_that_does_not_match(hub, fetch):
    body = SHARDS[0][:2000] + bytes([SHARDS[0][2000] ^ 1]) + SHARDS[0][2001:]
    hub.say['/a'] = [linked(SHARDS[0], '/b')]
    hub.say['/b'] = [body]
    fetch('checksum', '/a')
    hub.say['/b'] = [SHARDS[0]]
    fetch(None, '/a')


@pytest.mark.parametrize('page', [b'<html>', b'\n <!DOCTYPE html>', b'{"error": "gone"}', b''])
def test_something_else_in_place_of_parquet(hub, fetch, page):
    hub.say[STORE] = [page]
    fetch('not the file')


def test_a_web_page_is_no_table_either(hub, tmp_path):
    hub.say['/page'] = [b'<!DOCTYPE html>']
    with pytest.raises(OSError, match='web page'):
        client.download(f'{hub.url}/page', tmp_path / 'nsmc.tsv')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('chunked', [True, False])
def test_an_endless_body_ends(hub, fetch, chunked):
    def endless(to):
        to.send_response(200)
        to.send_header(*(('Transfer-Encoding', 'chunked') if chunked else ('Connection', 'close')))
        to.end_headers()
        while True:
            to.wfile.write(b'10000\r\n' + b'PAR1' * (1 << 14) + b'\r\n' if chunked else b'PAR1' * (1 << 14))
    hub.say[STORE] = [endless]
    fetch('were to come')


def test_redirects_in_a_circle(hub, fetch):
    hub.say['/a'], hub.say['/b'] = [turn('/b')], [turn('/a')]
    fetch('redirects', '/a')


def test_a_redirect_off_the_web(hub, fetch):
    hub.say['/a'] = [turn('file:///etc/hostname')]
    fetch('cannot be fetched', '/a')


def test_the_token_is_for_the_hub_alone(hub, fetch, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', ' hf_secret\n')
    other = Hub()
    other.say['/x'] = hub.say[STORE]
    hub.say['/a'] = [turn(f'{other.url}/x')]
    monkeypatch.setattr(client, 'HUB', hub.url)
    fetch(None, '/a')
    assert hub.asked[0][1]['Authorization'] == 'Bearer hf_secret' and 'Authorization' not in other.asked[0][1]
    monkeypatch.setattr(client, 'HUB', hub.url[:-1])  # a name that merely begins like the Hub's is not the Hub
    client.get(hub.url + STORE, {}).close()
    assert 'Authorization' not in hub.asked[-1][1]
    other.shutdown(), other.server_close()
