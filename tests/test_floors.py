"""The house: who may import whom, and what importing the package costs."""
import ast
import json
import statistics
from functools import cache
from pathlib import Path

import pytest

from .support import forks

ROOT = Path(__file__).parent.parent
PACKAGE = 'timm_longtail'
# rooms, from the lowest floor to the highest: a file imports from lower floors and from its own room only
FLOORS = (
    ('utils',),
    ('losses', 'models', 'data'),
    ('evaluation',),
    ('methods',),
    ('config', 'export'),
    ('training',),
    ('retraining', 'cli'),
)
SCRIPTS = ('train', 'retrain', 'validate', 'benchmark', f'{PACKAGE}.__main__')
FLOOR_OF = {f'{PACKAGE}.{room}': floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# the package itself registers models and methods
FLOOR_OF[PACKAGE] = FLOOR_OF[f'{PACKAGE}.methods']
FLOOR_OF.update({name: len(FLOORS) for name in SCRIPTS})
# accelerate is used from here on
TRAINING = FLOOR_OF[f'{PACKAGE}.training']
# importing the package does not import these floors: slow imports may stand at the top of a module
EXPORT = FLOOR_OF[f'{PACKAGE}.export']
# the commands of `cli` use what `retraining` offers
SAME_FLOOR = {(f'{PACKAGE}.cli', f'{PACKAGE}.retraining')}
METHOD_PAIRS = {('pnda', 'moco'), ('glmc_clr', 'glmc')}
DEFERRED = ('datasets', 'huggingface_hub', 'matplotlib', 'sklearn')


@cache
def read_sources():
    """Return the source of every module of the package and every entry point, by module name."""
    paths = [*ROOT.glob(f'{PACKAGE}/**/*.py'), *ROOT.glob('*.py')]
    names = {path: '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for path in paths}
    return {name: path.read_text() for path, name in names.items()}


@cache
def import_statements(source):
    """Return (statement, whether at module level) for each import."""
    tree = ast.parse(source)
    deferred = {id(child) for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                for child in ast.walk(node)}
    statements = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return [(node, id(node) not in deferred) for node in statements]


def is_package(name, sources):
    return name == PACKAGE or any(other.startswith(f'{name}.') for other in sources)


def imports(name, sources):
    """Yield (imported module, whether at module level): ours by full name, down to the file; others by first word."""
    words = name.split('.')
    within = words if is_package(name, sources) else words[:-1]

    for node, at_module_level in import_statements(sources[name]):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            base = node.module or ''
            if node.level:
                folder = within[:len(within) - node.level + 1]
                base = '.'.join([*folder, *filter(None, [node.module])])
            targets = [full if (full := f'{base}.{alias.name}') in sources else base for alias in node.names]
        for target in targets:
            ours = target in sources or target.split('.')[0] == PACKAGE
            yield target if ours else target.split('.')[0], at_module_level


@cache
def violations_of_the_project():
    return violations(read_sources())


def room(name):
    """Return the room of a module: a package of the package, or the module itself."""
    return '.'.join(name.split('.')[:2])


def floor_of(name):
    """Return the floor of one of our modules; None for a module that has no place in the house."""
    return FLOOR_OF.get(name, FLOOR_OF.get(room(name)))


def violations(sources):
    """Return one line for each import that the house forbids, and for each module without a floor."""
    found = [f'{name} has no floor' for name in sources if floor_of(name) is None]

    graph = {}
    for name in sources:
        floor = floor_of(name)
        if floor is None:
            continue

        for target, at_module_level in imports(name, sources):
            is_ours = target in sources or target.split('.')[0] == PACKAGE
            if is_ours:
                graph.setdefault(name, set()).add(target)
                faults = _faults_of_ours(name, target, sources)
            else:
                faults = _faults_of_others(floor, target, at_module_level)
            found += [f'{name} (floor {floor}) imports {target}{fault}' for fault in faults]

    return found + [f'cycle: {" -> ".join(cycle)}' for cycle in cycles(graph)]


def _faults_of_ours(name, target, sources):
    """Yield what is wrong with an import of one of our modules by another one."""
    floor, other = floor_of(name), floor_of(target)
    if target not in sources:
        yield ', which does not exist'
    elif other is not None and other > floor:
        yield f' of floor {other}'
    elif other == floor and _is_another_room(name, target):
        yield ': another room of the same floor'

    if not _method_may_import(name, target):
        yield ': methods share through _*.py only'


def _is_another_room(name, target):
    """Whether two modules of a floor are in rooms that may not know each other; the top floor has no rooms."""
    if floor_of(name) == len(FLOORS) or PACKAGE in (name, target):
        return False
    return room(name) != room(target) and (room(name), room(target)) not in SAME_FLOOR


def _faults_of_others(floor, target, at_module_level):
    """Yield what is wrong with an import of another package on a floor."""
    if target == 'accelerate' and floor < TRAINING:
        yield ': training and above only'
    elif target in DEFERRED and at_module_level and floor < EXPORT:
        yield ' at module level'


def _method_may_import(name, target):
    folder = f'{PACKAGE}.methods.'
    method, other = name.removeprefix(folder), target.removeprefix(folder)
    if not name.startswith(folder) or method.startswith('_'):
        return True
    if target == folder.rstrip('.'):
        return False  # the folder imports its files
    return not target.startswith(folder) or other.startswith('_') or (method, other) in METHOD_PAIRS


def cycles(graph):
    """Return a cycle through each module that lies on one, found depth first; [] for a graph without."""
    found, done = [], set()

    def visit(name, path):
        if name in path:
            found.append([*path[path.index(name):], name])
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, [*path, name])
            done.add(name)
    for name in sorted(graph):
        visit(name, [])
    return found


def test_every_import_goes_down():
    sources = read_sources()

    expected = {'train', PACKAGE, f'{PACKAGE}.training.loop', f'{PACKAGE}.methods.ce', f'{PACKAGE}.losses'}

    assert expected <= sources.keys()
    assert violations_of_the_project() == []


def test_the_package_has_these_rooms_and_no_other_files():
    names = {path.name for path in (ROOT / PACKAGE).iterdir()} - {'__pycache__'}
    rooms = {name for floor in FLOORS for name in floor}

    assert names == {*rooms, '__init__.py', '__main__.py', 'py.typed'}


def test_imports_are_found():
    sources = read_sources()

    assert (f'{PACKAGE}.utils.rng', True) in imports(f'{PACKAGE}.training.run', sources)  # from ..utils import rng
    assert (f'{PACKAGE}.methods._method', True) in imports(f'{PACKAGE}.methods.ce', sources)
    assert (f'{PACKAGE}.losses', True) in imports(f'{PACKAGE}.methods.bcl', sources)
    assert ('accelerate', True) in imports(f'{PACKAGE}.training.build', sources)


@pytest.mark.parametrize('name, source, words', [
    ('losses.x', 'from ..training.loop import fit', 'of floor 5'),
    ('losses.x', 'def f():\n    from ..models import attach_branches', 'another room of the same floor'),
    ('export.x', 'from ..config.parser import Parser', 'another room of the same floor'),
    ('data.x', 'import timm_longtail.methods.ce', 'of floor 3'),
    ('data.x', 'from ..evaluation import evaluators', 'of floor 2'),
    ('data.x', 'from timm_longtail import create_method', 'of floor 3'),
    ('training.x', 'import train', 'of floor 7'),
    ('training.x', 'from .nowhere import something', 'does not exist'),
    ('methods.x', 'from .bcl import BCL', 'through _*.py only'),
    ('methods.x', 'from . import ce', 'through _*.py only'),
    ('methods.x', 'from ..methods import Method', 'through _*.py only'),
    ('methods.x', 'from accelerate import Accelerator', 'training and above only'),
    ('methods.x', 'def f():\n    import accelerate.utils', 'training and above only'),
    ('data.x', 'from sklearn.datasets import load_digits', 'at module level'),
    ('evaluation.x', 'try:\n    import matplotlib.pyplot\nexcept ImportError:\n    pass', 'at module level'),
    ('models.x', 'import huggingface_hub', 'at module level'),
    ('novelty', '', 'has no floor'),
    ('utils.errors', 'from .rng import generator', 'cycle: '),
    ('losses._common', 'from .sup_con import sup_con_loss', 'cycle: '),
])
def test_a_wrong_import_is_found(name, source, words):
    sources = {**read_sources(), f'{PACKAGE}.{name}': source}
    if name == 'utils.errors':  # rng raises errors, in this test
        sources[f'{PACKAGE}.utils.rng'] = 'from .errors import UserError'

    new = set(violations(sources)) - set(violations_of_the_project())

    assert any(words in line for line in new)


@pytest.mark.parametrize('name, source', [
    ('data.x', 'def f():\n    import datasets\n    from sklearn.datasets import load_digits'),
    ('methods.x', 'from ._method import Method\nfrom ..evaluation.evaluators import LongTailEvaluator'),
    ('cli.x', 'import matplotlib\nfrom accelerate import Accelerator\nfrom ..retraining import report'),
    ('losses.x', 'from ..utils.errors import UserError\nfrom ._common import *'),
])
def test_a_right_import_is_not(name, source):
    sources = {**read_sources(), f'{PACKAGE}.{name}': source}

    assert set(violations(sources)) <= set(violations_of_the_project())


def test_methods_import_each_other_by_the_two_pairs_only():
    methods = {'moco': '', 'glmc': '', 'pnda': 'from .moco import MoCo', 'glmc_clr': 'from .glmc import GLMC'}
    sources = {**read_sources(), **{f'{PACKAGE}.methods.{name}': source for name, source in methods.items()}}
    before = violations(sources)
    assert not [line for line in before if 'through _*.py only' in line]
    sources[f'{PACKAGE}.methods.moco'] = 'from .glmc import GLMC'
    assert len(violations(sources)) == len(before) + 1


_MEASURE = '''
import json, os, sys, time
import timm
# as installed, modules are compiled once: the first of the imports does it, of ours and of no others
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False
assert 'timm_longtail' not in sys.modules
for _ in range(3):  # each time in a process of its own that has timm and nothing of ours
    if os.fork() == 0:
        start = time.process_time()
        import timm_longtail
        seconds = time.process_time() - start  # of this process: the machine may be busy
        measured = {'seconds': seconds, 'modules': sorted(sys.modules), 'file': timm_longtail.__file__}
        print(json.dumps(measured), flush=True)
        os._exit(0)
    os.wait()
'''


@pytest.mark.script
def test_importing_costs_little_over_timm(tmp_path):
    done = forks.run('-c', _MEASURE, tmp_path, cwd=ROOT, env=forks.ENV, server=forks.stock())

    assert done.returncode == 0, done.stderr
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) == 3 and Path(measured[0]['file']).parent.parent == ROOT
    imported = {name.split('.')[0] for name in measured[0]['modules']}
    assert not imported & {'accelerate', 'datasets', 'matplotlib', 'pandas', 'scipy', 'sklearn'}
    assert statistics.median(m['seconds'] for m in measured) <= 0.3
