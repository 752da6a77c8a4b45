"""Damaged files: one good file is damaged, and read by one of those that read its format.

A reader must refuse it in one line, or read what it would have read from the good file. Other content counts as a
silent change where the format can notice it: checkpoints, exported weights, packed files and flag files are written
by this package, with checksums or digests. Text that people write, Parquet and pictures hold nothing to compare with:
a digit that was flipped is a digit that might have been typed. There, and where the damage is a whole file of other
content, only a traceback, a hang or a wrong end is a fault.
"""
import shlex
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from . import damage
from .place import LISTS, PICTURES, TINY
from .trial import CHANGED, HANG, RAN, ROOT, Verdict, Workshop, judge

_READ = 'from tools.fuzz.reads import main; main()'
_QUEUE = ('recipes/run.py', '--list', '--queue', 'queue.txt', '--results', 'rows')


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        path: The good file, in the place.
        readers: Each a function of `reads.py`, or the command line of an entry point, where a word that names
            something in the place stands for its path.
        alter: Changes the structure of the content; None has none to change.
        noticed: Whether a change of what is read can be noticed.
    """
    path: str
    readers: tuple[str | tuple[str, ...], ...]
    alter: damage.Alter | None = None
    noticed: bool = False


_LAST = 'run/checkpoint-last.pth.tar'
_RUN = (*TINY, '--no-recipe', '--method', 'bcl', '--img-size', '16', '--batch-size', '256')
_PHOTOS = ('--dataset', 'folder', '--data-dir', 'pictures', '--workers', '0', '--batch-size', '4')
_PICTURE_READERS = (
    'read_pictures', 'read_pictures_lazily', 'read_pictures_leniently',
    ('train.py', *TINY, '--no-recipe', '--method', 'ce', '--epochs', '1', '--img-size', '16', *_PHOTOS),
    ('-m', 'timm_longtail', 'pack', *_PHOTOS[:4], '--skip-bad-images', '--packed', 'out.safetensors'),
)

FORMATS = {
    'checkpoint': Format(
        _LAST,
        ('read_a_checkpoint', 'read_a_trained_model', 'read_initial_weights', ('validate.py', '--checkpoint', _LAST),
         ('train.py', *_RUN, '--epochs', '2', '--save-steps', '1', '--resume', _LAST)),
        damage.alter_checkpoint, noticed=True),
    'weights': Format(
        'run/export/model.safetensors',
        ('read_an_export', 'read_an_export', 'read_initial_weights', 'read_for_a_push',
         ('validate.py', '--model', 'local-dir:run/export')),
        damage.alter_safetensors, noticed=True),
    'config': Format(
        'run/export/config.json',
        ('read_an_export', 'read_for_a_push', ('validate.py', '--model', 'local-dir:run/export'),
         ('retrain.py', 'run', '--classifier', 'ncm')),
        damage.alter_json),
    'card': Format('run/export/README.md', ('read_for_a_push',), damage.alter_lines),
    'packed': Format(
        'packed.safetensors',
        ('read_a_packed_set', 'read_a_packed_set', 'read_a_packed_set_lazily', 'read_a_packed_header',
         ('train.py', *TINY, '--no-recipe', '--method', 'ce', '--epochs', '1', '--img-size', '16', '--batch-size', '4',
          '--dataset', 'packed:packed.safetensors')),
        damage.alter_safetensors, noticed=True),
    'flags': Format(
        'flags.safetensors', ('read_a_flag_file', ('-m', 'timm_longtail', 'flags', 'flags.safetensors')),
        damage.alter_safetensors, noticed=True),
    'row': Format('rows/row.json', (_QUEUE,), damage.alter_json),
    'recipe': Format(
        'recipe.yaml',
        ('read_a_recipe', ('train.py', '-c', 'recipe.yaml', *TINY, '--img-size', '16', '--epochs', '1')),
        damage.alter_yaml),
    'queue': Format('queue.txt', (_QUEUE,), damage.alter_lines),
    'list': Format(f'lists/{LISTS["train"]}', ('read_lists',), damage.alter_lines),
    'args': Format('run/args.yaml', (('retrain.py', 'run', '--classifier', 'ncm'),), damage.alter_yaml),
    'table': Format('table/train-00000-of-00001.parquet', ('read_a_table',), damage.alter_table),
    **{name: Format(f'pictures/train/ant/{file}', _PICTURE_READERS, damage.enlarge_png if 'png' in name else None)
       for name, file in PICTURES.items()},
}
FLIPPED = ('checkpoint', 'weights', 'packed')


class Files:
    """Cases of damaged files.

    Args:
        workshop: Where trials are made.
    """
    name = 'files'
    formats = tuple(FORMATS)

    def __init__(self, workshop: Workshop):
        self.workshop = workshop
        self.lock = threading.Lock()
        self.undamaged = cache(self._undamaged)

    def __call__(self, number: int) -> Verdict:
        draw = self.workshop.draw(self.name, number)
        # in turn, so that a short exercise sees each
        kind = self.formats[number % len(self.formats)]
        reader = draw.choice(FORMATS[kind].readers)
        with self.workshop.case(f'{self.name}:{number}') as folder:
            how, is_other_file = self._damage(kind, folder / 'place', draw)
            argv, program = _command(reader, FORMATS[kind].path, folder / 'place')
            ended = self.workshop.run(argv, folder)

        verdict = judge(ended, program)
        compared = FORMATS[kind].noticed and not is_other_file and not _only_crashes(reader)
        if verdict.outcome == RAN and compared:
            with self.lock:
                good = self.undamaged(kind, reader)
            if _content(ended.stdout) != good:
                verdict.outcome = CHANGED

        if verdict.outcome in (CHANGED, HANG):
            verdict.what = f'{kind} read by {_called(reader)}'
        elif verdict.is_fault:
            verdict.what = f'{kind}: {verdict.what}'
        verdict.how = f'{FORMATS[kind].path}: {how}; {_called(reader)}'
        return verdict

    def _damage(self, kind: str, place: Path, draw: Random) -> tuple[str, bool]:
        """Damage a file; returns how, and whether it is a whole file of other content now."""
        path, alter = place / FORMATS[kind].path, FORMATS[kind].alter
        chance = draw.random()
        if chance < 0.1:
            name = draw.choice(list(damage.PLACES))
            damage.PLACES[name](path)
            return name, False

        if chance < 0.15:
            other = draw.choice([name for name in FORMATS if name != kind])
            path.write_bytes((place / FORMATS[other].path).read_bytes())
            return f'replaced by a {other}', True

        data = path.read_bytes()
        if chance < 0.45 and alter is not None:
            path.write_bytes(alter(data, draw))
            return alter.__name__, True

        name = draw.choice(list(damage.BYTES))
        path.write_bytes(damage.BYTES[name](data, draw))
        return name, False

    def _undamaged(self, kind: str, reader) -> str:
        """Return what a reader says of the good file."""
        with self.workshop.case(f'{self.name}:good') as folder:
            argv, program = _command(reader, FORMATS[kind].path, folder / 'place')
            ended = self.workshop.run(argv, folder)
        verdict = judge(ended, program)
        if verdict.outcome != RAN:
            raise RuntimeError(f'{kind}: the good file is not read by {_called(reader)}\n{verdict.detail}')
        return _content(ended.stdout)


class Flips(Files):
    """Cases of a single bit in files whose reader must notice."""
    name = 'flips'
    formats = FLIPPED

    def _damage(self, kind: str, place: Path, draw: Random) -> tuple[str, bool]:
        path = place / FORMATS[kind].path
        path.write_bytes(damage.flip_bit(path.read_bytes(), draw))
        return 'flip_bit', False


def _command(reader: str | tuple[str, ...], path: str, place: Path) -> tuple[list[str], str]:
    """Return what follows `python`, and the name that errors begin with."""
    if isinstance(reader, str):
        return ['-c', _READ, reader, str(place / path)], 'read: error: '

    words = []
    for word in reader:
        if word == 'folder':  # the data set, not what lies there under this name
            words.append(word)
            continue
        scheme, colon, rest = word.rpartition(':')
        is_there = rest not in ('', '.') and (place / rest.split('/')[0]).exists() and not word.startswith('-')
        words.append(f'{scheme}{colon}{place / rest}' if is_there else word)
    if words[0] == '-m':
        return words, f'timm-longtail {words[2]}: error: '
    return [str(ROOT / words[0]), *words[1:]], f'{Path(words[0]).name}: error: '


def _content(stdout: str) -> str:
    """Return what was read: the digest, or the figures that an entry point prints, without its folder and clock."""
    return '\n'.join(line for line in stdout.splitlines() if not line.startswith(('figures:', 'output:')))


def _only_crashes(reader: str | tuple[str, ...]) -> bool:
    """Whether an entry point prints how long it took, so that two outputs are never the same."""
    return reader[0] == 'train.py'


def _called(reader: str | tuple[str, ...]) -> str:
    return reader if isinstance(reader, str) else 'python ' + shlex.join(reader)


