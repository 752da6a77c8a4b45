"""Random command lines: options as the parsers have them, with values that suit, edge values and hostile ones.

A command line is a short run that works, and up to four random options behind it. What works may go on working or be
refused in one line; one that is refused before it has named its output folder leaves none behind. Paths are relative to
the empty folder it runs in; the good files lie beside it, in `../place`.
"""
import argparse
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from .place import TINY
from .trial import ONE_LINE, ROOT, WRONG_END, Verdict, Workshop, judge, listing

# ---- values by their kind

# numbers that argparse takes; words that it does not are among WORDS
INTEGERS = ['0', '1', '2', '3', '8', '-1', '-1000', '1000000', '4294967296', '1' + 30 * '0', '٣', ' 4 ', '1_0']
FLOATS = ['0', '0.1', '0.5', '1', '2', '-1', '-0.0', 'nan', 'inf', '-inf', '1e308', '1e-308', '1e999', '-1e-9', '16.5']
WORDS = [
    '', ' ', '1e3', '2.5', '0x10', '0,5', '1%',
    'none', 'null', 'auto', 'all', '-', '--', '0', '-1', 'nan', 'ünïcödé', '日本語', 'a\nb', 'a\tb', 'x' * 300,
    '%s', '{}', '{0}', '$(x)', '[', '(', '"', "'", '\udcff', '\x07', 'a/b', 'a:b', ':', '@', '=', 'a=b', '*',
]
PATHS = ['.', 'new', 'new/deep/er', '/proc/nowhere/x', '../place', *(f'../place/{name}' for name in (
    'nothing', 'folder', 'fifo', 'loop', 'zero', 'text.txt', 'photos', 'pictures', 'packed.safetensors', 'run',
    'run/export', 'run/export/model.safetensors', 'run/checkpoint-last.pth.tar', 'run/args.yaml', 'flags.safetensors',
    'recipe.yaml', 'queue.txt', 'rows', 'rows/row.json', 'table', 'lists'))]
KEYS = ['cosine_scale', 'num_classes', 'drop_rate', 'in_chans', 'layers', 'channels', 'img_size', 'tau']
VALUES = ['0', '1', '2', '0.5', '-1', 'nan', 'inf', '1e308', '10**12', '1000000000000', 'True', 'False', 'None', 'x',
          '""', '[]', '[1,2]', '{}', '(1,)', 'eval', 'sim', '[eval,sim,sim]', '../place/flags.safetensors',
          '../place/fifo', '../place/zero']

# ---- options that need a value of their own; any other string option takes words and paths

SUITABLE = {
    'dataset': ['digits_lt', 'folder', 'packed:../place/packed.safetensors', 'hfds/../place/table', 'cifar10_lt',
                'imagenet_lt', 'hfds/', 'packed:', 'packed:../place/fifo', 'packed:../place/zero', 'hfids/a/b'],
    'data_dir': ['../place/photos', '../place/pictures', '../place/lists'],
    'model': ['resnet20_cifar', 'bcl_resnet20', 'resnet18', 'local-dir:../place/run/export', 'local-dir:', 'hf-hub:a/b',
              'vit_tiny_patch16_224', 'local-dir:../place/photos'],
    'opt': ['momentum', 'sgd', 'adamw', 'lamb', 'sam', 'lookahead_sgd', 'lbfgs'],
    'sched': ['cosine', 'multistep', 'step', 'poly', 'constant', 'tanh', 'plateau', 'none'],
    'resume': ['auto', '../place/run', '../place/run/checkpoint-last.pth.tar'],
    'config': ['../place/recipe.yaml'],
    'initial_checkpoint': ['../place/run', '../place/run/export', '../place/run/export/model.safetensors'],
    'checkpoint': ['../place/run', '../place/run/checkpoint-last.pth.tar', '../place/run/model_best.pth.tar'],
    'source': ['../place/run', '../place/run/export', 'resnet20_cifar', 'local-dir:../place/run/export'],
    'repo_id': ['user/name', 'name', 'a/b/c', 'user/' + 'x' * 100],
    'classifier': ['all', 'ncm', 'crt', 'lws', 'tau-norm', 'max-norm', 'linear', 'logit-adjust'],
    'view': ['crop_flip', 'eval', 'sim', 'rand', '"rrc(size=3)"', 'rrc(', 'crop_flip()'],
    'packed': ['new.safetensors', '../place/packed.safetensors', 'new/deep.safetensors'],
    'tracker': ['tensorboard', 'wandb'],
    'tune': ['all', 'classifier', 'last_block', 'bias', 'lora', 'lora(r=0)', 'lora(layers=conv1)', 'adaptformer',
             'bias('],
    'head': ['linear', 'cosine', 'cosine(scale=0)', 'cosine(scale=nan)', 'cosine()', 'sphere'],
    'init_classifier': ['class_means', 'class_means(images=0)', 'text:../place/run/export/model.safetensors', 'text:',
                        'text:../place/fifo'],
    'prior': ['train', 'balanced', '../place/text.txt', '../place/rows/row.json', '../place/zero'],
    'model_prior': ['train', 'balanced', '../place/text.txt', '../place/rows/row.json'],
    'train': ['ce', 'balanced_softmax', 'moco'],
    'figures': ['figures'], 'figure': ['figure.png'], 'predictions': ['predictions.csv'], 'per_class': ['classes.csv'],
}

# ---- options that belong to a value, where the program has them

COMPANIONS = {
    'folder': ['--data-dir', '../place/photos', '--batch-size', '4', '--workers', '0'],
    'packed:../place/packed.safetensors': ['--batch-size', '4'],
    'hfds/../place/table': ['--batch-size', '2'],
    'imagenet_lt': ['--data-dir', '../place/lists'],
}

# ---- options whose large values are honest work, and not a fault: they take small ones

SMALL = {'epochs', 'steps', 'blocks', 'warmup', 'workers', 'img_size', 'minutes'}

# ---- options that are left out

LEFT_OUT = {'torchcompile', 'help'}  # compiles for minutes; ends before anything else is looked at

_SHORT = [*TINY, '--dataset', 'digits_lt', '--no-recipe', '--img-size', '16', '--batch-size', '256']


@dataclass(frozen=True)
class Program:
    """An entry point.

    Attributes:
        argv: What follows `python`.
        begins: What its errors begin with.
        works: Options that work, in a second or two.
        parser: Parser of its options.
        share: How often it is tried.
    """
    argv: tuple[str, ...]
    begins: str
    works: tuple[str, ...]
    parser: argparse.ArgumentParser
    share: int

    @cached_property
    def actions(self) -> list[argparse.Action]:
        """Options of its parser, and, of `benchmark.py`, those of `train.py` that it takes too."""
        actions = self.parser._actions
        if self.argv[0] == 'benchmark.py':
            from timm_longtail.config.train_options import train_parser
            actions = actions + train_parser()._actions
        return [action for action in actions if action.dest not in LEFT_OUT]


def programs() -> list[Program]:
    """Return all entry points."""
    from recipes import run
    from timm_longtail.cli import (
        benchmark,
        compare,
        flags,
        pack,
        predict,
        push,
        recipes,
        report,
        retrain,
        train,
        validate,
    )

    def module(name, *works, of, share=2):
        return Program(
            ('-m', 'timm_longtail', name), f'timm-longtail {name}: error: ', works, of.create_parser(), share)

    def script(path, *works, of, share):
        return Program((path,), f'{Path(path).name}: error: ', works, of.create_parser(), share)

    place = '../place'
    return [
        script('train.py', *_SHORT, '--method', 'ce', '--epochs', '1', of=train, share=16),
        script('validate.py', '--checkpoint', f'{place}/run', of=validate, share=6),
        script('retrain.py', f'{place}/run', '--classifier', 'crt', '--epochs', '1', of=retrain, share=6),
        script('benchmark.py', *_SHORT, '--steps', '1', '--warmup', '0', '--blocks', '1', of=benchmark, share=4),
        script('recipes/run.py', '--list', '--queue', f'{place}/queue.txt', of=run, share=2),
        module('pack', '--dataset', 'folder', '--data-dir', f'{place}/photos', '--packed', 'new.safetensors', of=pack),
        module('push', f'{place}/run/export', '--repo-id', 'user/name', of=push),
        module('compare', f'{place}/run', '--output', 'new', '--folds', '2', of=compare, share=3),
        module('predict', f'{place}/run/export', f'{place}/photos', of=predict, share=4),
        module('report', f'{place}/run', '-o', 'new.html', of=report),
        module('flags', f'{place}/flags.safetensors', of=flags),
        module('recipes', 'show', 'bcl_resnet20.digits_lt_if20', of=recipes, share=1),
    ]


def draw_pairs(keys: list[str], draw: Random) -> list[str]:
    """Return pairs of K=V, now and then with a word that is no pair."""
    pairs = [f'{draw.choice([*keys, *keys, "unknown"])}={draw.choice(VALUES)}' for _ in range(draw.randint(1, 2))]
    return pairs if draw.random() < 0.95 else [*pairs, draw.choice(WORDS)]


def draw_method(draw: Random) -> list[str]:
    """Return a method with options of its own, on a model that it takes."""
    from timm_longtail.methods import default_options, list_methods, method_class
    name = draw.choice(list_methods())
    model = ['--model-kwargs', *TINY[3:5], 'cosine_scale=None'] if method_class(name).linear_classifier else []
    options = list(default_options(method_class(name)))
    return [*model, '--method', name, '--method-kwargs', *(draw_pairs(options, draw) if options else [])]


def draw_value(action: argparse.Action, draw: Random) -> str:
    """Return one value for an option, mostly of its kind."""
    if draw.random() < 0.05:
        return draw.choice(WORDS + PATHS)
    if action.choices:
        return draw.choice([str(choice) for choice in action.choices])
    if action.type is int:
        return draw.choice(INTEGERS if action.dest not in SMALL else INTEGERS[:6])
    if action.type is float:
        return draw.choice(FLOATS if action.dest not in SMALL else FLOATS[:8])

    suitable = _suitable(action.dest)
    if suitable and draw.random() < 0.8:
        return draw.choice(suitable)
    return draw.choice(WORDS + PATHS)


def _suitable(dest: str) -> list[str]:
    from timm_longtail.data import list_samplers
    from timm_longtail.methods import list_methods
    named = {'method': list_methods(), 'sampler': [*list_samplers(), 'power(q=-1)', 'power(q=nan)', 'power(']}
    return named.get(dest) or SUITABLE.get(dest, [])


def draw_option(program: Program, draw: Random) -> list[str]:
    """Return an option with its values as they are typed; now and then one that is misspelt or lacks its value."""
    action = draw.choice(program.actions)
    if not action.option_strings:
        return [draw_value(action, draw)]

    name = draw.choice(action.option_strings)
    if draw.random() < 0.02:
        name = name[:-1]
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return [name]
    if action.dest == 'method_kwargs':
        return draw_method(draw)
    if action.dest.endswith('_kwargs'):
        return [name, *draw_pairs(KEYS, draw)]

    count = action.nargs if isinstance(action.nargs, int) else 1
    if action.nargs in ('+', '*'):
        count = draw.choice([1, 1, 2, 3])
    if draw.random() < 0.02:
        count = 0
    values = [draw_value(action, draw) for _ in range(count)]

    if len(values) == 1 and name.startswith('--') and draw.random() < 0.3:
        option = [f'{name}={values[0]}']
    else:
        option = [name, *values]
    for value in values:
        option += _companions(program, value)
    return option


def _companions(program: Program, value: str) -> list[str]:
    """Return the options that belong to a value, as far as the program has them."""
    words = COMPANIONS.get(value, [])
    known = {name for action in program.actions for name in action.option_strings}
    pairs = zip(words[::2], words[1::2])
    return [word for name, given in pairs if name in known for word in (name, given)]


class Commands:
    """Cases of random command lines.

    Args:
        workshop: Where trials are made.
    """
    name = 'commands'

    def __init__(self, workshop: Workshop):
        self.workshop = workshop
        self.programs = programs()

    def draw(self, number: int) -> tuple[Program, list[list[str]]]:
        """Return the program of a case and its random options."""
        draw = self.workshop.draw(self.name, number)
        program = draw.choices(self.programs, [program.share for program in self.programs])[0]
        return program, [draw_option(program, draw) for _ in range(draw.choice([1, 2, 2, 3, 3, 4]))]

    def __call__(self, number: int) -> Verdict:
        program, options = self.draw(number)
        return self.run(f'{self.name}:{number}', program, options)

    def run(self, case: str, program: Program, options: list[list[str]]) -> Verdict:
        """Run a program with some options behind those that work."""
        words = [*program.works, *(word for option in options for word in option)]
        script = program.argv if program.argv[0] == '-m' else (str(ROOT / program.argv[0]),)
        with self.workshop.case(case) as folder:
            before = listing(folder / 'here', folder / 'place')
            ended = self.workshop.run([*script, *words], folder)
            after = listing(folder / 'here', folder / 'place')

        verdict = judge(ended, program.begins)
        verdict.how = 'python ' + shlex.join([*program.argv, *words])
        new = [path for path in after.keys() - before.keys() if after[path][0]]
        has_begun = any(line.startswith('output: ') for line in ended.stdout.splitlines())
        if verdict.outcome == ONE_LINE and new and not has_begun:
            verdict.outcome, verdict.what = WRONG_END, f'{program.begins} refused, and leaves a new folder behind'
        return verdict

    def shrink(self, number: int, verdict: Verdict) -> Verdict:
        """Return the verdict on the shortest command line found that ends in the same way."""
        program, options = self.draw(number)
        for option in list(options):
            fewer = [other for other in options if other is not option]
            shorter = self.run(f'{self.name}:{number}', program, fewer)
            if (shorter.outcome, shorter.what) == (verdict.outcome, verdict.what):
                options, verdict = fewer, shorter
        return verdict


