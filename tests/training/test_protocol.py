"""What a checkpoint and a run that it is loaded into must agree on."""
import pytest

from timm_longtail.training.protocol import differences

HERE = {
    'lr': 0.1, 'mean': (0.5, 0.5), 'tune': 'adaptformer', 'head': 'cosine',
    'model_kwargs': {'depth': 2}, 'method_kwargs': {'tau': 1.0, 'view': 'crop'},
}
DEFAULTS = {'tau': 1.0, 'view': 'crop'}


@pytest.mark.parametrize('changes, words', [
    ({}, []),
    ({'lr': 0.2}, ['lr 0.2 there, 0.1 here']),
    ({'lr': None}, ['lr None there, 0.1 here']),
    # what a file makes of a tuple
    ({'mean': [0.5, 0.5]}, []),
    ({'mean': [0.5, 0.4]}, ['mean [0.5, 0.4] there, (0.5, 0.5) here']),
    # options of the model and the method, one by one
    ({'model_kwargs': {'depth': 3, 'width': 8}}, [
        'model_kwargs depth 3 there, 2 here', 'model_kwargs width 8 there, None here']),
    ({'model_kwargs': None}, ["model_kwargs None there, {'depth': 2} here"]),
    ({'method_kwargs': {'tau': 2.0, 'view': 'crop'}}, ['method_kwargs tau 2.0 there, 1.0 here']),
    # texts of one tuning, and of one classifier
    ({'tune': 'adaptformer(bottleneck=auto)', 'head': 'cosine( scale = 25.0 )'}, []),
    ({'tune': 'adaptformer(bottleneck=8)'}, ['tune adaptformer(bottleneck=8) there, adaptformer here']),
    ({'tune': None, 'head': 'linear'}, ['tune None there, adaptformer here', 'head linear there, cosine here']),
    ({'tune': 'of a later version'}, ['tune of a later version there, adaptformer here']),
    # an older checkpoint, which holds what was typed
    ({'method_kwargs': {}}, []),
    ({'method_kwargs': None}, []),
    ({'method_kwargs': {'tau': 2.0}}, ['method_kwargs tau 2.0 there, 1.0 here']),
    # a later one may agree on more
    ({'new': 1}, []),
])
def test_differences_in_words(changes, words):
    assert differences(HERE, {**HERE, **changes}, DEFAULTS) == words


def test_a_name_that_a_checkpoint_lacks_is_a_difference():
    there = {name: value for name, value in HERE.items() if name != 'lr'}

    assert differences(HERE, there, DEFAULTS) == ['lr None there, 0.1 here']
