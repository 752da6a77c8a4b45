"""The contracts that timm asks of a model, over all registered ones."""
import pytest
import torch

from timm_longtail.models.layers import CosineLinear

from ..support.networks import REDUCTIONS, build, every_model, images, last_map, pooled, whole


@every_model
def test_forward(name, caplog):
    model = whole(name).eval()
    assert 'No pretrained configuration' not in caplog.text

    num_classes = model.default_cfg['num_classes']
    for batch_size in (1, 2):
        logits = model(images(model, batch_size))
        assert logits.shape == (batch_size, num_classes) and logits.isfinite().all()

    x = images(model)
    assert model.forward_features(x).shape == last_map(model)
    assert torch.equal(model.fc(pooled(model, x)), model(x))
    assert model(images(size=48)).shape == (2, num_classes)  # sizes are not fixed


@every_model
def test_every_parameter_has_a_gradient(name):
    model = build(name, num_classes=7, drop_rate=0.1).train()
    model(images(model)).mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@every_model
def test_gradient_checkpointing_changes_nothing(name):
    grads = []
    for enable in (False, True):
        model = build(name, num_classes=7)
        model.set_grad_checkpointing(enable)
        x = images(model)
        (model(x).square().mean() + model.forward_intermediates(x)[0].mean()).backward()
        grads.append([p.grad for p in model.parameters()])

    torch.testing.assert_close(grads[0], grads[1])


@every_model
def test_reset_classifier(name):
    model = build(name, global_pool='max').eval()
    x = images(model)
    kind, before = type(model.get_classifier()), pooled(model, x)
    model.reset_classifier(5)
    assert model.num_classes == 5 and type(model.get_classifier()) is kind
    assert model.get_classifier().weight.shape == (5, model.head_hidden_size)
    assert torch.equal(pooled(model, x), before) and not model.fc.training  # pooling is kept

    model.reset_classifier(0)
    assert model.num_classes == 0 and torch.equal(model(x), before)

    model.reset_classifier(0, '')
    assert torch.equal(model(x), model.forward_features(x))
    assert build(name, num_classes=0, global_pool='')(x).shape == last_map(model)

    model.to('meta', torch.float64).reset_classifier(3, 'catavgmax')
    weight = model.get_classifier().weight
    assert (weight.shape, weight.device.type, weight.dtype) == ((3, 2 * model.num_features), 'meta', torch.float64)


@every_model
@pytest.mark.parametrize('feature_cls', ['getter', 'list'])
def test_features_only(name, feature_cls):
    model = build(name, features_only=True, feature_cls=feature_cls).eval()
    x = images(model)
    maps, info = model(x), model.feature_info
    assert [m.shape[1] for m in maps] == info.channels()
    assert [x.shape[-1] // m.shape[-1] for m in maps] == info.reduction() == REDUCTIONS[name]
    assert not any('fc.' in k or 'branches' in k for k in model.state_dict())


@every_model
def test_forward_intermediates(name):
    model = build(name).eval()
    x = images(model)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x)) and torch.equal(final, maps[-1])
    assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]

    listed = build(name, features_only=True, feature_cls='list').eval()
    listed.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(maps, listed(x), rtol=0, atol=0)

    last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    torch.testing.assert_close(last_two, maps[-2:], rtol=0, atol=0)

    early, taken = model.forward_intermediates(x, indices=[0, -3], stop_early=True)
    torch.testing.assert_close([early, *taken], [maps[-3], maps[0], maps[-3]], rtol=0, atol=0)
    with pytest.raises(AssertionError):
        model.forward_intermediates(x, output_fmt='NLC')


@every_model
@pytest.mark.parametrize('indices, kept', [([0], [0]), ([1, 2], [1, 2]), (1, [-1])])
def test_prune_leaves_no_unused_parameter(name, indices, kept):
    model = build(name).train()
    x = images(model)
    assert model.prune_intermediate_layers(indices) == [i % len(REDUCTIONS[name]) for i in kept]
    maps = model.forward_intermediates(x, indices=kept, intermediates_only=True)
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.num_classes == 0 and model(x).shape[1] == model.num_features == maps[-1].shape[1]


@every_model
@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_torchscript_and_fx(name):
    model = build(name).eval()
    x = images(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@every_model
def test_arguments(name):
    grey = build(name, in_chans=1, num_classes=5)
    assert grey(images(grey, in_chans=1)).shape == (2, 5)
    assert isinstance(build(name, cosine_scale=1.0).get_classifier(), CosineLinear)
    with pytest.raises(TypeError):
        build(name, device='meta', not_an_argument=1)

    meta = build(name, device='meta', dtype=torch.float64)
    tensors = [*meta.parameters(), *meta.buffers()]
    assert all(t.device.type == 'meta' for t in tensors)
    assert all(t.dtype == torch.float64 for t in tensors if t.is_floating_point())
    assert meta.bfloat16()(images(meta).to('meta', torch.bfloat16)).dtype == torch.bfloat16
