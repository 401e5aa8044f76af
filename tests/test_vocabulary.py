"""The vocabularies: texts of several lines, what `<unk>` hides, names and files of other people."""
import json

import pytest
from conftest import run
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from parts.corpus import escape
from parts.errors import UserError
from parts.vocabulary import (
    CONTROL_TOKENS,
    Characters,
    HubTokenizer,
    SentencePiece,
    load_vocabulary,
    printable,
    vocabulary_files,
)

LINES = ['def 강(물):', '    흐르고', '        또 흐른다  🌊', '', 'ㅋㅋ é \t끝']
SIGNS = ['\n', '\r', '\t', ' ', '    ', '가', 'ㅋ', 'e\u0301', '강', '🌊', 'def ', '</s>', '龍',
         '\u2028', '\x1b', '␤', '한']
ODD_TEXTS = st.lists(st.sampled_from(SIGNS)).map(''.join)


@pytest.fixture(scope='module')
def train_txt(tmp_path_factory):
    """Texts of several lines, each one line of the file."""
    path = tmp_path_factory.mktemp('texts') / 'train.txt'
    texts = []
    for n in range(len(LINES)):
        texts.append('\n'.join(LINES[n:] + LINES[:n] + LINES[::-1]))
    path.write_text(''.join(f'-\t{escape(text)}\n' for text in texts * 30), 'utf-8')
    return path


@pytest.fixture(scope='module')
def pieces(train_txt):
    return SentencePiece.train(train_txt, vocab_size=400)


WORDS = pre_tokenizers.Whitespace()


def hub_tokenizer(words, split=WORDS):
    """A tokenizer of whole words, which knows these alone."""
    names = [*CONTROL_TOKENS, '<unk>', *words]
    ids = {name: n for n, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token='<unk>'))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(CONTROL_TOKENS)
    return HubTokenizer(tokenizer.to_str().encode())


# --- round trips ---

@given(text=ODD_TEXTS)
def test_every_line_break_and_space_comes_back(pieces, text):
    ids = pieces.encode([text])[0]
    assert pieces.decode(ids) == text


def test_a_line_break_and_an_indentation_are_pieces(pieces):
    ids = pieces.encode(['def 강(물):\n        또'])[0]
    names = [pieces.processor.id_to_piece(i) for i in ids]
    assert not any('0x0A' in name for name in names)
    assert any(name.startswith('▁▁▁▁') for name in names)


# --- what a vocabulary hides ---

def test_hidden_characters_are_counted(train_txt, pieces):
    text = '龍 강 虎'
    characters = Characters.train(train_txt, min_count=1)
    words = hub_tokenizer(['강'])
    for vocabulary, n_unseen in ((pieces, 0), (characters, 2), (words, 2)):
        ids = vocabulary.encode([text])[0]
        assert vocabulary.n_unseen(text, ids) == n_unseen
    longer = '강 용용 강'                                      # one <unk> for a word of two
    assert words.n_unseen(longer, words.encode([longer])[0]) == 2
    lines = '강\n강\t강'                                       # what is left out, and what is <unk>
    letters = hub_tokenizer(['강'], pre_tokenizers.Split(Regex('(?m).'), 'isolated'))
    assert words.n_unseen(lines, words.encode([lines])[0]) == 0
    assert letters.n_unseen(lines, letters.encode([lines])[0]) == 2


def test_the_log_counts_what_is_hidden_as_eval_does(tmp_path):
    texts = ['강 용용 강 용', '용용용 강'] * 9
    words = hub_tokenizer(['강'])
    (tmp_path / 'words.json').write_bytes(words.content)
    for name in ('train.txt', 'validation.txt'):
        (tmp_path / name).write_text(''.join(f'-\t{text}\n' for text in texts), 'utf-8')
    run('prepare.py', '--data_dir=.', '--model_name=words.json', cwd=tmp_path)
    meta = json.loads((tmp_path / 'tokenizer/meta.json').read_text('utf-8'))
    hidden = sum(text.count('용') for text in texts)          # a word is one <unk>, whatever it has
    assert (meta['val_unseen'], meta['train_unseen']) == (hidden, hidden)


# --- what other people write ---

@pytest.mark.parametrize('vocabulary', [
    '../../bashrc', 'config.json', ['tokenizer.model'], None])
def test_only_known_names_become_a_path(vocabulary, pieces, tmp_path):
    (tmp_path / 'meta.json').write_text(json.dumps({'vocabulary': vocabulary}))
    for read in (load_vocabulary, vocabulary_files):
        with pytest.raises(UserError, match='no vocabulary that can be read'):
            read(tmp_path)


@pytest.mark.parametrize('name, content', [
    ('characters.json', [*CONTROL_TOKENS, '<unk>', 7]),
    ('characters.json', [*CONTROL_TOKENS, '가']),              # no <unk>
    ('characters.json', {'</s>': 0}),
    ('characters.json', dict.fromkeys([*CONTROL_TOKENS, '<unk>', '가'], 0)),
    ('characters.json', [*CONTROL_TOKENS, '<unk>', '가', '가']),
    ('characters.json', [*CONTROL_TOKENS, '가', '<unk>']),
    ('characters.json', 7),
    ('characters.json', None),                                # no file
    ('tokenizer.model', ''),
    ('tokenizer.model', 'junk'),
    ('tokenizer.json', {}),
])
def test_a_damaged_vocabulary_is_a_sentence(name, content, tmp_path):
    (tmp_path / 'meta.json').write_text(json.dumps({'vocabulary': name}))
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match='no vocabulary that can be read'):
        load_vocabulary(tmp_path)


def test_nothing_that_a_model_writes_commands_a_terminal():
    assert printable('가\x1b[31m나\x9b2J\x07\n\t끝') == '가�[31m나�2J�\n\t끝'
