"""Options of training: what is typed replaces the recipe, and what options alone decide is refused at once."""
import pytest

from timm_longtail.config.recipe import RECIPES as FOLDER
from timm_longtail.config.recipe import read_recipe
from timm_longtail.config.train_options import parse_train_args, train_parser
from timm_longtail.utils.errors import UserError

BCL = ['--model', 'bcl_resnet32', '--dataset', 'cifar100_lt']
CE = ['--no-recipe', '--model', 'resnet20_cifar', '--method', 'ce']
DIGITS = ['--model', 'bcl_resnet20', '--dataset', 'digits_lt']


def test_what_is_typed_wins():
    recipe = read_recipe(FOLDER / 'bcl_resnet32.cifar100_lt_if100.yaml', train_parser())
    typed = vars(parse_train_args([*BCL, '--lr', '0.3', '--weight-decay', '0', '--sched', 'cosine']))

    assert {name: typed[name] for name in recipe} == {**recipe, 'lr': 0.3, 'weight_decay': 0.0, 'sched': 'cosine'}
    # the parser's own default counts when it is typed
    assert parse_train_args([*BCL, '--lr', '0.1']).lr == 0.1 != recipe['lr']
    # and one typed pair leaves the recipe's other pairs
    kwargs = parse_train_args([*DIGITS, '--method-kwargs', 'temperature=0.2']).method_kwargs
    assert kwargs['temperature'] == 0.2 and 'views' in kwargs


def test_another_method_leaves_out_what_the_recipe_says_of_its_own(caplog):
    recipe = ['-c', 'bcl_resnet20.digits_lt_if20']
    own = parse_train_args([*recipe, '--method', 'bcl'])
    assert own.method_kwargs and not caplog.records

    other = parse_train_args([*recipe, '--method', 'ce'])
    assert (other.method_kwargs, other.lr, other.epochs) == ({}, own.lr, own.epochs)
    assert 'the recipe is one of bcl: its --method-kwargs do not count for ce' in caplog.text


def test_batch_sizes():
    args = parse_train_args([*BCL, '--batch-size', '64'])
    assert (args.batch_size, args.global_batch_size) == (64, None)
    args = parse_train_args([*BCL, '--global-batch-size', '64'])
    assert (args.batch_size, args.global_batch_size) == (None, 64)
    args = parse_train_args([*BCL, '--no-recipe'])
    assert (args.batch_size, args.global_batch_size) == (128, None)
    with pytest.raises(UserError, match='--batch-size .* or --global-batch-size, not both'):
        parse_train_args([*BCL, '--batch-size', '64', '--global-batch-size', '64'])


@pytest.mark.parametrize('option', [
    '--batch-size', '--global-batch-size', '--grad-accum-steps', '--epochs', '--log-interval', '--val-interval',
])
@pytest.mark.parametrize('value', ['0', '-1'])
def test_numbers_below_one_are_refused(option, value):
    with pytest.raises(UserError, match=rf'^{option} must be (at least 1|in \[1, 1000000\]), got {value}$'):
        parse_train_args([*BCL, option, value])


@pytest.mark.parametrize('options, words', [
    (['--clip-grad', '-1'], '--clip-grad must be at least 0, got -1.0'),
    (['--momentum', '1'], '--momentum must be in [0, 1), got 1.0'),
    (['--model-ema-decay', '1.1'], '--model-ema-decay must be in [0, 1], got 1.1'),
    (['--weight-decay', '-0.1'], '--weight-decay must be at least 0, got -0.1'),
    (['--min-lr', 'nan'], '--min-lr must be at least 0, got nan'),
    (['--lr', '1e308'], '--lr must be at least 0 and at most 1e+09, got 1e+308'),
    (['--sched', 'step', '--decay-epochs', '0'], '--decay-epochs must be above 0'),
    (['--sched', 'step', '--decay-epochs', '1', '--decay-rate', '100'], '--sched step has no rate in epoch 200'),
    (['--sched', 'cosin'], '--sched cosin'),
    (['--sched', 'wsd', '--epochs', '10'], '--sched wsd: wsd schedule requires'),
    (['--decay-milestones', '20', '10'], '--decay-milestones must increase, got [20, 10]'),
    (['--decay-milestones', '10', '10'], '--decay-milestones must increase'),
    (['--opt', 'adahessian'], '--opt adahessian takes gradients of gradients'),
    (['--opt', 'lookahead_adahessian'], '--opt lookahead_adahessian takes gradients of gradients'),
    (['--opt', 'lbfgs'], "unknown optimizer 'lbfgs'"),
    (['--opt', 'look_sgd'], "unknown optimizer 'look_sgd'; did you mean sgd"),
    (['--opt', 'sgd', '--momentum', '0'], '--opt sgd: Nesterov momentum requires'),
    (['--method-kwargs', 'view'], "--method-kwargs must be pairs of K=V, got 'view'"),
    (['--method-kwargs', '=flip'], "--method-kwargs must be pairs of K=V, got '=flip'"),
    (['--method-kwargs', 'a b=1'], "--method-kwargs must be pairs of K=V, got 'a b=1'"),
    (['--method-kwargs', 'view=flip', 'view=sim'], '--method-kwargs must name each option once, got view twice'),
    (['--method-kwargs', 'view=[1'], "--method-kwargs must hold Python literals, got 'view=[1'"),
    (['--method-kwargs', 'view={[]: 1}'], '--method-kwargs must hold Python literals'),
    (['--method-kwargs', 'view=' + '(' * 10_000], '--method-kwargs must hold Python literals'),
    (['--method-kwargs', 'mixup_alpha=' + '-' * 50_000 + '1'], "option 'mixup_alpha' of method 'ce' must be a number"),
    (['--method-kwargs', 'model=1'], "method 'ce' has no option 'model'"),
    (['--method-kwargs', 'name=1'], "method 'ce' has no option 'name'"),
    (['--method-kwargs', '__class__=1'], "method 'ce' has no option '__class__'"),
    (['--model-kwargs', 'num_classes=3'], '--model-kwargs num_classes: the data set'),
    (['--sampler', 'power(q=1e3)'], "sampler 'power(q=1e3)': q must be in [-10, 10], got 1000.0"),
    (['--sampler', 'balanced'], "unknown sampler 'balanced'"),
    (['--batch-size', '8', '--global-batch-size', '8'], 'not both'),
    (['--mixed-precision', 'x' * 5000], 'invalid choice'),
], ids=lambda value: ' '.join(value)[:40] if isinstance(value, list) else '')
def test_what_options_alone_decide_is_refused_when_they_are_parsed(options, words):
    with pytest.raises(UserError) as error:
        parse_train_args([*CE, *options])
    assert words in str(error.value) and '\n' not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize('options', ['name=1', 'model_name=1', '__class__=1', 'layers=3', 'layers=abc', 'self=1'])
def test_options_of_a_model_that_it_refuses(options):
    with pytest.raises(UserError, match='^--model resnet20_cifar with ') as error:
        parse_train_args([*CE[:3], '--model-kwargs', options])
    assert '\n' not in str(error.value)


def test_clipping_at_zero_is_no_clipping(tmp_path):
    assert parse_train_args([*CE, '--clip-grad', '0']).clip_grad is None
    assert parse_train_args([*CE, '--clip-grad', '0.5']).clip_grad == 0.5

    path = tmp_path / 'recipe.yaml'
    path.write_text('model: resnet20_cifar\nclip_grad: 0\n')
    assert parse_train_args(['-c', str(path)]).clip_grad is None
