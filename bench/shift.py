"""Reviews unlike those of training: long ones and some topics are left out of training on purpose.

    python -m bench.shift --data_dir=data/movie
    python prepare.py --data_dir=data/shift --output_dir=data/shift
    python train.py --data_dir=data/shift --out_dir=out/shift
    python -m bench.linear_model --data_dir=data/shift --read_dir=data/long --model_path=out/shift

    data/movie → data/shift     train.txt without them, validation.txt as it is
               → data/long      validation.txt: those that are longer than nine in ten
               → data/topics    validation.txt: those that name a topic

What a model gains by knowing the kind of text shows in the first, what it has understood in the
others.
"""
import re
from pathlib import Path

from configurator import configure
from parts.checkpoint import atomic_write
from parts.errors import UserError, run_script

data_dir = 'data/movie'  # with train.txt and validation.txt, as prepare.py wrote them
output_dir = 'data'      # where the folders shift, long and topics go
topics = '애니|만화|픽사|디즈니|공포|호러|무섭|음악|노래|OST|뮤지컬|드라마'  # words, | between them
configure(globals())

SHARE_KEPT = 0.9         # of the training reviews, by length: the longest tenth is left out


def main():
    train, validation = read_lines('train.txt'), read_lines('validation.txt')
    longest = sorted(map(n_characters, train))[int(SHARE_KEPT * len(train))]

    def is_usual(line):
        return n_characters(line) <= longest and not re.search(topics, line)

    write_lines('shift/train.txt', [line for line in train if is_usual(line)])
    write_lines('shift/validation.txt', validation)
    long = [line for line in validation if n_characters(line) > longest]
    write_lines('long/validation.txt', long)
    write_lines('topics/validation.txt', [line for line in validation if re.search(topics, line)])


def n_characters(line):
    """The length of the text in a line 'rating<TAB>text'."""
    _, _, text = line.rstrip('\n').partition('\t')
    return len(text)


def read_lines(name):
    """The lines of a file in data_dir, each with its line break. Raises UserError."""
    try:
        with open(Path(data_dir, name), encoding='utf-8', newline='\n') as file:
            return list(file)
    except OSError as error:
        raise UserError(f'{data_dir}/{name} cannot be read: {error.strerror}') from None


def write_lines(name, lines):
    with atomic_write(Path(output_dir, name)) as file:
        file.writelines(lines)
    print(f'{output_dir}/{name}: {len(lines):,} reviews')


if __name__ == '__main__':
    run_script(main)
