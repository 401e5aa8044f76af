"""Fetch files from the Hugging Face Hub and elsewhere.

A download is bounded, checked, and resumed where the connection broke. It gets its name when it is
complete, not before.
"""
import functools
import hashlib
import json
import os
import re
import time
from itertools import islice
from pathlib import Path

from parts.errors import UserError
from parts.checkpoint import atomic_write

HUB = (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')
DOWNLOADS = Path('data/download')
LARGEST = 4 << 30  # bytes: no file that is fetched comes near, and no server shall fill the disk
BLOCK = 1 << 16  # bytes read at a time
WAITS = (0.1, 0.5, 2.5, 12.5, 0)  # seconds after each connection that broke; five are enough


@functools.cache
def web():
    """The session for all requests. Where a server is busy or away it asks five times more.

    It waits 0, 0.5, 1, 2 and 4 seconds before these. `requests` is slow to load, hence loaded here.
    """
    import requests
    from urllib3 import Retry
    retries = Retry(
        total=5,
        backoff_factor=0.25,
        status_forcelist=(429, 500, 502, 503, 504),
        respect_retry_after_header=False,  # it could ask for hours
    )
    session = requests.Session()
    for scheme in ('http://', 'https://'):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retries))
    return session


def get(url, headers):
    """A streaming answer; the Hub alone is shown the Hub's token. Raises UserError."""
    import requests
    token = os.environ.get('HF_TOKEN', '').strip()
    if token and url.startswith(f'{HUB}/'):
        # requests drops this header where a redirect leads to another host
        headers = {**headers, 'Authorization': f'Bearer {token}'}
    try:
        answer = web().get(url, headers=headers, stream=True, timeout=30)
        answer.raise_for_status()
        return answer
    except requests.RequestException as error:
        inner = error.args[0] if error.args else error
        reason = getattr(inner, 'reason', error)
        raise UserError(f'{url} cannot be fetched: {reason}') from None


# --- one file ---

def download(url, path):
    """Fetch url into path, unless it is there already. Returns path. Raises UserError.

    Its length must be right and, where the server states it, its sha256.
    """
    if not path.exists():
        with atomic_write(path, 'w+b') as file:
            size, sha256 = fetch(url, file, path.name)
            check_download(url, file, path.suffix, size, sha256)
    return path


def fetch(url, file, name):
    """Stream url into file, with a bar, going on from where a connection broke.

    Returns (size, sha256) as the server states them, or else None and ''. Raises UserError.
    """
    import requests
    from tqdm import tqdm
    done = 0  # bytes so far
    size = None
    sha256 = ''
    with tqdm(desc=name, unit='B', unit_scale=True, disable=None) as bar:
        for wait in WAITS:
            headers = {'Accept-Encoding': 'identity'}  # a compressed stream could not be resumed
            if done:
                headers['Range'] = f'bytes={done}-'
            with get(url, headers) as answer:
                done = resume_point(url, answer, done)
                file.seek(done)
                size, sha256 = stated(answer, done, size, sha256)
                bar.total = size
                most = min(size or LARGEST, LARGEST)
                try:
                    for block in answer.iter_content(BLOCK):
                        done += file.write(block)
                        bar.update(done - bar.n)
                        if done > most:
                            break
                    file.truncate()
                    return size, sha256
                except requests.RequestException:
                    time.sleep(wait)
    raise UserError(f'{url}: the connection broke five times; nothing was kept')


def resume_point(url, answer, done):
    """The byte at which an answer begins: 0 where the server cannot resume. Raises UserError."""
    content_range = answer.headers.get('Content-Range', 'bytes 0-')
    match = re.match(r'bytes (\d+)-', content_range)
    if not match or int(match[1]) > done:
        raise UserError(f'{url}: asked for the rest from byte {done:,}, '
                        f'the server sent another part; nothing was kept')
    return int(match[1])


def stated(answer, done, size, sha256):
    """(size, sha256) of the whole file, as this answer states them, or as known before."""
    # the Hub states both on its redirect, and the store it leads to does not
    for hop in (*answer.history, answer):
        size = hop.headers.get('X-Linked-Size', size)
        sha256 = hop.headers.get('X-Linked-ETag', sha256).strip('"')
    rest = answer.headers.get('Content-Length')
    if size:
        return int(size), sha256
    return (done + int(rest) if rest else None), sha256


def check_download(url, file, suffix, size, sha256):
    """Raise UserError where a complete download is not the file it should be."""
    file.seek(0)
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    done = file.tell()
    file.seek(0)
    beginning = file.read(100).lstrip()
    is_page = beginning.startswith(b'<')
    if is_page or suffix == '.parquet' and not beginning.startswith(b'PAR1'):
        raise UserError(f'{url}: a web page or something else came, not the file; '
                        f'nothing was kept')
    if done > LARGEST or size not in (None, done):
        raise UserError(f'{url}: {done:,} bytes came, where {size or LARGEST:,} were to come; '
                        f'nothing was kept')
    if re.fullmatch('[0-9a-f]{64}', sha256) and sha256 != digest:
        raise UserError(f'{url}: the checksum is not the one the server states; nothing was kept')


# --- repositories ---

def dataset(subset):
    """Paths of the parquet files of a subset of leey4n/KR3, 'kr3' or 'kr3_raw'. Raises UserError.

    The list of files is kept too, so that a second run asks nothing.
    """
    kept = DOWNLOADS / f'{subset}.json'
    if not kept.exists():
        urls = dataset_urls(subset)
        with atomic_write(kept) as file:
            json.dump(urls, file)
    urls = json.loads(kept.read_text('utf-8'))
    return [download(url, DOWNLOADS / f'{subset}_{i:04}.parquet') for i, url in enumerate(urls)]


def dataset_urls(subset):
    """Where the parquet files of a subset are: as the dataset viewer lists them, or the repository.

    The viewer may be away, or answer oddly, while the repository is there. Raises UserError.
    """
    repository = f'{HUB}/api/datasets/leey4n/KR3'
    try:
        urls = viewer_urls(f'{repository}/parquet', subset)
    except (UserError, ValueError, LookupError, TypeError, AttributeError):
        urls = repository_urls(repository, subset)
    if not urls:
        raise UserError(f'{repository} lists no parquet file of {subset}')
    return urls


def viewer_urls(url, subset):
    """From the viewer's list, {subset: {split: [url, …]}}."""
    subsets = get_json(url)
    names = list(subsets)
    only_one = len(names) == 1 and names[0] != 'kr3_raw'
    if subset == 'kr3' and only_one:
        subset = names[0]  # it may be called 'default'
    urls = []
    for split in subsets[subset].values():
        urls.extend(split)
    return urls


def repository_urls(url, subset):
    """From the repository's list of files, {'siblings': [{'rfilename': 'kr3.parquet'}, …]}."""
    urls = []
    for entry in get_json(url).get('siblings', []):
        file = entry.get('rfilename', '')
        of_raw = 'kr3_raw' in file
        if file.endswith('.parquet') and of_raw == (subset == 'kr3_raw'):
            urls.append(f'{HUB}/datasets/leey4n/KR3/resolve/main/{file}')
    return urls


def get_json(url):
    """The JSON object at url, of 64 MB at most. Raises UserError."""
    blocks = islice(get(url, {}).iter_content(BLOCK), 1000)
    try:
        return dict(json.loads(b''.join(blocks)))
    except (ValueError, TypeError):
        raise UserError(f'{url}: no list of files came, but something else') from None


def is_repository(name):
    """Is this owner/name? Nothing else ever becomes part of an address or a path."""
    return re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', name) is not None


def download_model(name, file):
    """One file of the model repository `name`, owner/name. Returns its path. Raises UserError."""
    folder = DOWNLOADS / name.replace('/', '--')
    return download(f'{HUB}/{name}/resolve/main/{file}', folder / file)
