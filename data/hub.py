"""Fetch files from the Hugging Face Hub and elsewhere: bounded, checked, resumed, and under their names only when whole."""
import hashlib
import json
import os
import re
import time
from itertools import islice
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3 import Retry

from configurator import whole

HUB = (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')
DOWNLOADS = Path('data/download')
LARGEST = 4 << 30  # bytes: no file we fetch comes near, and no server shall fill the disk

web = requests.Session()
for scheme in ('http://', 'https://'):  # five more tries where the server is away or busy: at once, then after 0.5, 1, 2 and 4 seconds
    web.mount(scheme, requests.adapters.HTTPAdapter(max_retries=Retry(
        5, backoff_factor=0.25, status_forcelist=(429, 500, 502, 503, 504), respect_retry_after_header=False)))


def get(url, headers):
    """A streaming answer, asked for with the Hub's token (at the Hub alone). Raises OSError in a sentence."""
    if (token := os.environ.get('HF_TOKEN', '').strip()) and url.startswith(f'{HUB}/'):
        headers = {**headers, 'Authorization': f'Bearer {token}'}  # requests drops it where a redirect leads to another host
    try:
        answer = web.get(url, headers=headers, stream=True, timeout=30)
        answer.raise_for_status()
        return answer
    except requests.RequestException as e:
        raise OSError(f'{url} cannot be fetched: {getattr(e.args[0], "reason", e) if e.args else e}') from None


def download(url, path):
    """Fetch url into path, once: streamed with a bar, resumed where the connection broke, and given its name only when the length and,
    where the server states it, the sha256 are right. Returns path; raises OSError in a sentence."""
    if path.exists():
        return path
    done, size, sha = 0, None, ''
    with whole(path, 'w+b') as f, tqdm(desc=path.name, unit='B', unit_scale=True, disable=None) as bar:
        for wait in (0.1, 0.5, 2.5, 12.5, 0):
            with get(url, {'Accept-Encoding': 'identity', **({'Range': f'bytes={done}-'} if done else {})}) as answer:
                at = re.match(r'bytes (\d+)-', answer.headers.get('Content-Range', 'bytes 0-'))  # 0: it cannot resume, all comes anew
                if not at or int(at[1]) > done:
                    raise OSError(f'{url}: asked for the rest from byte {done:,}, the server sent another part; nothing was kept')
                done = f.seek(int(at[1]))
                for hop in (*answer.history, answer):  # the Hub states size and sha256 on its redirect; the store it leads to does not
                    size, sha = hop.headers.get('X-Linked-Size', size), hop.headers.get('X-Linked-ETag', sha).strip('"')
                rest = answer.headers.get('Content-Length')
                bar.total = size = int(size) if size else done + int(rest) if rest else None
                try:
                    for block in answer.iter_content(1 << 16):
                        done += f.write(block)
                        bar.update(done - bar.n)
                        if done > min(size or LARGEST, LARGEST):
                            break
                    break
                except requests.RequestException:
                    time.sleep(wait)
        else:
            raise OSError(f'{url}: the connection broke five times; nothing was kept')
        f.truncate(), f.seek(0)
        digest = hashlib.file_digest(f, 'sha256').hexdigest()
        f.seek(0)
        start = f.read(100).lstrip()
        if start.startswith(b'<') or path.suffix == '.parquet' and not start.startswith(b'PAR1'):
            raise OSError(f'{url}: a web page or something else came, not the file; nothing was kept')
        if done > LARGEST or size not in (None, done):
            raise OSError(f'{url}: {done:,} bytes came, where {size or LARGEST:,} were to come; nothing was kept')
        if re.fullmatch('[0-9a-f]{64}', sha) and sha != digest:
            raise OSError(f'{url}: the checksum is not the one the server states; nothing was kept')
    return path


def dataset(subset):
    """The parquet files of leey4n/KR3's subset, as the dataset viewer lists them or, where that fails, the repository itself."""
    about, listing = f'{HUB}/api/datasets/leey4n/KR3', DOWNLOADS / f'{subset}.json'  # remembered: a second run asks nothing

    def ask(url):
        try:
            return dict(json.loads(b''.join(islice(get(url, {}).iter_content(1 << 16), 1000))))  # 64 MB at most
        except (ValueError, TypeError):
            raise OSError(f'{url}: no list of files came, but something else') from None

    if not listing.exists():
        try:
            subsets = ask(f'{about}/parquet')
            chosen = next(iter(subsets)) if subset == 'kr3' and len(subsets) == 1 and 'kr3_raw' not in subsets else subset
            urls = [url for split in subsets[chosen].values() for url in split]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # the viewer may be away, or odd, while the Hub is there
            files = [file.get('rfilename', '') for file in ask(about).get('siblings', [])]
            urls = [f'{HUB}/datasets/leey4n/KR3/resolve/main/{file}' for file in files
                    if file.endswith('.parquet') and ('kr3_raw' in file) == (subset == 'kr3_raw')]
        if not urls:
            raise OSError(f'{about} lists no parquet file of {subset}')
        with whole(listing) as f:
            json.dump(urls, f)
    return [download(url, DOWNLOADS / f'{subset}_{i:04}.parquet') for i, url in enumerate(json.loads(listing.read_text('utf-8')))]


def is_repository(name):
    """Is this the name of a Hub repository, owner/name? Nothing else ever becomes part of an address or a path."""
    return re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', name) is not None


def download_model(name, file):
    """One file of the model repository `name` (owner/name). Returns its path; raises OSError in a sentence."""
    return download(f'{HUB}/{name}/resolve/main/{file}', DOWNLOADS / name.replace('/', '--') / file)
