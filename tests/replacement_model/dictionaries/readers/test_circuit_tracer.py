"""circuit-tracer's folders: every key of the config and every tensor is read as meant, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cases import Case, load_case, write_circuit_tracer
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosstrace.replacement_model import FeatureAt, ReplacementModel, Set, TranscoderReader, open_transcoders
from crosstrace.replacement_model.dictionaries.base import Activation, ActivationKind
from crosstrace.tracer import trace

CPU = torch.device("cpu")
TOP_4 = {"activation": "topk", "k": 4}
THRESHOLD = "activation_function.threshold"


def configure(folder: Path, **entries: object) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text()) | entries
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))


def change(path: Path, **tensors: Tensor | None) -> None:
    stored = load_file(path) | tensors
    save_file({key: tensor.contiguous() for key, tensor in stored.items() if tensor is not None}, path)


def rename(path: Path, old: str, new: str) -> None:
    change(path, **{new: load_file(path)[old], old: None})


def encoder_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("W_enc_*.safetensors")) or sorted(folder.glob("layer_*.safetensors"))


def drop_thresholds(folder: Path) -> None:
    for path in encoder_files(folder):
        change(path, **{key: None for key in load_file(path) if "threshold" in key})


@pytest.fixture(params=["clt_plain_gqa", "skip_transcoder"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, Path]:
    """A cross-layer folder, then a per-layer one."""
    case = load_case(request.param)
    return case, write_circuit_tracer(case, tmp_path / "ct")


@pytest.fixture
def clt(tmp_path: Path) -> Path:
    return write_circuit_tracer(load_case("clt_plain_gqa"), tmp_path / "ct")


@pytest.fixture
def per_layer(tmp_path: Path) -> Path:
    return write_circuit_tracer(load_case("skip_transcoder"), tmp_path / "ct")


def assert_same_weights(reader: TranscoderReader, expected: TranscoderReader) -> None:
    assert (reader.n_layers, reader.cross_layer, reader.activation) == (
        expected.n_layers,
        expected.cross_layer,
        expected.activation,
    )
    for layer in range(reader.n_layers):
        for mine, other in zip(
            vars(reader.encoder(layer)).values(), vars(expected.encoder(layer)).values(), strict=True
        ):
            assert torch.equal(mine, other)
        assert torch.equal(reader.decoder(layer), expected.decoder(layer))
        assert torch.equal(reader.bias(layer), expected.bias(layer))
        skip, other = reader.skip(layer), expected.skip(layer)
        assert (skip is None) == (other is None)
        assert skip is None or other is None or torch.equal(skip, other)


class TestTopK:
    def test_the_k_largest_features_of_a_token_fire(self, both):
        case, folder = both
        drop_thresholds(folder)
        configure(folder, **TOP_4)
        model = ReplacementModel.from_pretrained(case.model, folder, CPU)
        reader = model.transcoders.reader
        assert str(reader.activation) == "TopK with k = 4"
        assert reader.l0 == 4
        local = model.local(case.input_ids)
        first = model.description.excluded_first
        for layer in range(reader.n_layers):
            encoder = reader.encoder(layer)
            u_pd = local.layers[layer].mlp_norm[:] * local.mids_lpd[layer]
            h_pf = (u_pd @ encoder.w_enc_df.float() + encoder.b_enc_f)[first:]
            entries = local.activations.layer(layer)
            dense_pf = torch.zeros_like(h_pf)
            places = local.activations.positions[entries] - first, local.activations.features[entries]
            dense_pf[places] = local.activations.values[entries]
            largest = h_pf.topk(4, dim=1)
            expected_pf = torch.zeros_like(h_pf).scatter(1, largest.indices, largest.values)
            torch.testing.assert_close(dense_pf, expected_pf)

    def test_edges_are_complete_and_no_intervention_changes_nothing(self, both):
        case, folder = both
        drop_thresholds(folder)
        configure(folder, **TOP_4)
        model = ReplacementModel.from_pretrained(case.model, folder, CPU)
        graph = trace(model, case.input_ids)
        n_positions = len(case.input_ids) - model.description.excluded_first
        assert len(graph.active_features) == 4 * n_positions * model.description.n_layers
        assert graph.completeness_error() < 1e-5
        unchanged = model.model(torch.tensor([case.input_ids])).logits[0, -1]
        for freeze in ("direct", "iterative"):
            outcome = model.intervene(case.input_ids, [], freeze=freeze)
            torch.testing.assert_close(outcome.logits_v, unchanged, rtol=1e-4, atol=1e-4)

    def test_recomputed_features_are_the_k_largest_again(self, both):
        case, folder = both
        drop_thresholds(folder)
        configure(folder, **TOP_4)
        model = ReplacementModel.from_pretrained(case.model, folder, CPU)
        first, n_positions = model.description.excluded_first, len(case.input_ids)
        before = model.local(case.input_ids).activations
        after = model.intervene(case.input_ids, [Set(FeatureAt(0, 0, n_positions - 2), 100.0)]).activations
        changed = 0
        for layer in range(1, before.n_layers):
            fired, fires = (
                {tuple(pair) for pair in torch.stack([a.positions[e], a.features[e]], 1).tolist()}
                for a, e in ((a, a.layer(layer)) for a in (before, after))
            )
            positions = torch.tensor([position for position, _ in fires])
            assert torch.bincount(positions, minlength=n_positions).tolist() == [0] * first + [4] * (
                n_positions - first
            )
            assert {pair for pair in fired if pair[0] < n_positions - 2} == {p for p in fires if p[0] < n_positions - 2}
            changed += len(fires - fired)
        assert changed

    def test_a_k_saved_with_the_weights_is_read(self, per_layer):
        drop_thresholds(per_layer)
        for path in encoder_files(per_layer):
            change(path, k=torch.tensor(4))
        assert str(open_transcoders(per_layer).activation) == "TopK with k = 4"
        configure(per_layer, **TOP_4)
        assert str(open_transcoders(per_layer).activation) == "TopK with k = 4"
        configure(per_layer, k=5)
        with pytest.raises(
            ValueError, match=r"layer_0.safetensors: k is 4, but .*config.yaml makes it TopK with k = 5"
        ):
            open_transcoders(per_layer)

    @pytest.mark.parametrize("name", ["batch_topk", "BatchTopK", "batch-top-k"])
    def test_a_batch_top_k_saved_as_thresholds_is_a_jump_relu(self, both, name):
        expected = open_transcoders(both[1])
        configure(both[1], activation=name, k=4)
        assert_same_weights(open_transcoders(both[1]), expected)


class TestConfig:
    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            (
                {"activation": "gelu"},
                "activation 'gelu' is not supported; supported: relu, jump_relu, topk, batch_topk",
            ),
            ({"activation": "topk"}, "activation is 'topk', but k, the number of features that fire, is missing"),
            ({"activation": "topk", "k": 0}, "k is 0; expected a whole number above 0"),
            ({"activation": "topk", "k": "4"}, "k is '4'; expected a whole number above 0"),
            ({"k": 4}, "k is 4, but activation is None; expected topk"),
            ({"activation": "relu", "k": 4}, "k is 4, but activation is 'relu'; expected topk"),
            ({"activation_fn": "topk"}, "key activation_fn is not known; known keys: .*activation, k"),
            ({"activation_function": "gelu"}, "key activation_function is not known"),
            ({"nonlinearity_kind": "top-k"}, "key nonlinearity_kind is not known"),
            ({"mode": "topk"}, "key mode is not known"),
            ({"topk": 4}, "key topk is not known"),
            ({"normalize_inputs": True}, "key normalize_inputs is not known"),
            ({"apply_b_dec_to_input": True}, "key apply_b_dec_to_input is not known"),
            ({"model_kind": "sae"}, "model_kind is 'sae'; expected transcoder_set or cross_layer_transcoder"),
            ({"transcoders": "layer_0.safetensors"}, "transcoders is 'layer_0.safetensors'; expected a list of files"),
            ({"transcoders": []}, "expected a list of files"),
            ({"transcoders": [7]}, "transcoders: 7 names no .safetensors file"),
            ({"transcoders": ["hf://org/repo/params.npz"]}, "params.npz' names no .safetensors file"),
            ({"transcoders": [{"path": "a.safetensors"}]}, r"has no layer; expected layer and path"),
            ({"transcoders": [{"layer": 0}]}, r"\{'layer': 0\} names no .safetensors file"),
            ({"transcoders": [{"layer": 1, "path": "a.safetensors"}]}, r"lists no file for layer 0 \(layers \[1\]\)"),
        ],
        ids=str,
    )
    def test_what_is_not_known_is_refused_by_name(self, both, entries, message):
        configure(both[1], **entries)
        with pytest.raises(ValueError, match=rf"config.yaml: .*{message}") as caught:
            open_transcoders(both[1])
        assert "\n" not in str(caught.value)

    def test_notes_are_no_settings(self, both):
        configure(both[1], description="trained on a corpus", license="cc-by-4.0", activation_fn=None, normalize=False)
        assert open_transcoders(both[1]).n_layers

    @pytest.mark.parametrize("activation", [{"activation": "relu"}, TOP_4], ids=["relu", "topk"])
    def test_thresholds_and_an_activation_without_them_contradict(self, both, activation):
        configure(both[1], **activation)
        with pytest.raises(ValueError, match=r"_0.safetensors: has thresholds .*, but .*config.yaml makes it"):
            open_transcoders(both[1])

    @pytest.mark.parametrize("activation", ["jump_relu", "batch_topk"])
    def test_an_activation_with_thresholds_needs_them(self, both, activation):
        drop_thresholds(both[1])
        configure(both[1], activation=activation)
        with pytest.raises(
            ValueError, match=r"_0.safetensors: lacks thresholds .*, but .*config.yaml makes it JumpReLU"
        ):
            open_transcoders(both[1])

    def test_a_relu_by_name(self, both):
        drop_thresholds(both[1])
        configure(both[1], activation="relu")
        reader = open_transcoders(both[1])
        assert reader.activation == Activation(ActivationKind.RELU)
        assert not reader.encoder(0).threshold_f.any()

    @pytest.mark.parametrize(("content", "message"), [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not the file itself"),
        ("- a list", "holds list; expected keys such as model_name"),
        ("", "holds NoneType; expected keys"),
        ("a: [", "not valid YAML"),
        ("\udcff", "not a text file in UTF-8"),
    ])  # fmt: skip
    def test_damaged_configs(self, both, content, message):
        (both[1] / "config.yaml").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=f"config.yaml: {message}") as caught:
            open_transcoders(both[1])
        assert "\n" not in str(caught.value)


class TestTensors:
    def test_thresholds_by_either_name(self, per_layer):
        expected = open_transcoders(per_layer)
        stored = [expected.encoder(layer).threshold_f.clone() for layer in range(4)]
        for path in encoder_files(per_layer):
            rename(path, THRESHOLD, "threshold")
        reader = open_transcoders(per_layer)
        assert reader.activation.kind is ActivationKind.JUMP_RELU
        for layer in range(4):
            assert torch.equal(reader.encoder(layer).threshold_f, stored[layer])
            assert stored[layer].any()

    def test_two_thresholds_contradict(self, per_layer):
        change(per_layer / "layer_1.safetensors", threshold=torch.ones(96))
        with pytest.raises(
            ValueError, match=r"layer_1.safetensors: has tensors activation_function.threshold and threshold"
        ):
            open_transcoders(per_layer)

    @pytest.mark.parametrize("tensor", ["log_threshold", "W_skip_2", "scale", "b_pre"])
    def test_a_tensor_that_nothing_reads_is_refused(self, both, tensor):
        path = encoder_files(both[1])[2]
        change(path, **{tensor: torch.ones(3)})
        with pytest.raises(
            ValueError, match=rf"_2.safetensors: tensor {tensor} is not known in such a file; expected W_enc"
        ):
            open_transcoders(both[1])

    def test_so_is_one_beside_a_decoder(self, clt):
        change(clt / "W_dec_1.safetensors", W_skip_1=torch.eye(48))
        with pytest.raises(
            ValueError, match=r"W_dec_1.safetensors: tensor W_skip_1 is not known .*; expected W_dec_1$"
        ):
            open_transcoders(clt)

    def test_thresholds_of_a_clt_are_there_in_all_layers_or_in_none(self, clt):
        change(clt / "W_enc_3.safetensors", threshold_3=None)
        with pytest.raises(
            ValueError, match=r"W_enc_3.safetensors: tensor threshold_3 is missing, which other layers have"
        ):
            open_transcoders(clt)

    def test_so_are_skip_connections(self, per_layer):
        change(per_layer / "layer_2.safetensors", W_skip=None)
        with pytest.raises(ValueError, match=r"layer_2.safetensors: tensor W_skip is missing, which other layers have"):
            open_transcoders(per_layer)

    def test_a_promised_skip_connection_has_to_be_there(self, per_layer):
        configure(per_layer, skip_connection=False)
        with pytest.raises(
            ValueError, match=r"config.yaml: skip_connection is false, but .*layer_0.* has a tensor W_skip"
        ):
            open_transcoders(per_layer)


class TestListedFiles:
    """`transcoders:` lists files of either layout; their tensors tell which."""

    @pytest.fixture(params=["clt_affine", "skip_transcoder"])
    def scope(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, Path]:
        """A config that lists Gemma Scope 2 files: cross-layer, then per layer."""
        case, folder = load_case(request.param), tmp_path / "listing"
        shutil.copytree(case.transcoders, tmp_path / "scope")
        folder.mkdir()
        kind = "cross_layer_transcoder" if case.name == "clt_affine" else "transcoder_set"
        files = sorted((tmp_path / "scope").glob("**/params*.safetensors"))
        config = {"model_name": "tiny", "model_kind": kind, "feature_input_hook": "mlp.hook_in"}
        config |= {
            "feature_output_hook": "hook_mlp_out",
            "transcoders": [f"../{p.relative_to(tmp_path)}" for p in files],
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return case, folder

    def test_gemma_scope_files(self, scope):
        case, folder = scope
        assert_same_weights(open_transcoders(folder), open_transcoders(case.transcoders))
        graph = trace(ReplacementModel.from_pretrained(case.model, folder, CPU), case.input_ids)
        expected = trace(ReplacementModel.from_pretrained(case.model, case.transcoders, CPU), case.input_ids)
        assert torch.equal(graph.adjacency, expected.adjacency)

    def test_the_list_is_honoured_whatever_else_lies_there(self, scope, tmp_path):
        case, folder = scope
        write_circuit_tracer(load_case("clt_plain_gqa" if case.name == "clt_affine" else case.name), tmp_path / "decoy")
        for path in (tmp_path / "decoy").glob("*.safetensors"):
            shutil.copy(path, folder)
        assert_same_weights(open_transcoders(folder), open_transcoders(case.transcoders))

    @pytest.mark.parametrize("key", ["path", "filepath"])
    def test_mappings_with_a_layer_in_any_order(self, scope, key):
        case, folder = scope
        files = yaml.safe_load((folder / "config.yaml").read_text())["transcoders"]
        entries = [{"id": f"layer {layer}", "layer": layer, key: file} for layer, file in enumerate(files)][::-1]
        # the oldest have no kind and are per-layer
        configure(folder, transcoders=entries, **({"model_kind": None} if case.name == "skip_transcoder" else {}))
        assert_same_weights(open_transcoders(folder), open_transcoders(case.transcoders))
        entries[0][key] = entries[1][key]
        configure(folder, transcoders=entries)
        with pytest.raises(ValueError, match=r"twice, for layers 2 and 3"):
            open_transcoders(folder)

    def test_the_kind_has_to_fit(self, scope):
        case, folder = scope
        cross_layer = case.name == "clt_affine"
        configure(folder, model_kind="transcoder_set" if cross_layer else "cross_layer_transcoder")
        holds = "part of a cross-layer transcoder" if cross_layer else "a transcoder"
        with pytest.raises(
            ValueError, match=rf"model_kind is .*, but .*params.*.safetensors is {holds} of Gemma Scope 2"
        ):
            open_transcoders(folder)

    def test_a_shorter_list_is_no_shorter_clt(self, scope):
        case, folder = scope
        files = yaml.safe_load((folder / "config.yaml").read_text())["transcoders"]
        configure(folder, transcoders=files[:-1])
        if case.name == "clt_affine":
            with pytest.raises(
                ValueError, match=r"params_layer_0.safetensors: w_dec has shape .*; expected \(96, 3, 64\)"
            ):
                open_transcoders(folder)
        else:
            with pytest.raises(ValueError, match="layers is 3 in the transcoders and 4 in the model"):
                ReplacementModel.from_pretrained(case.model, folder, CPU)

    def test_a_file_of_another_layout_is_named(self, scope, tmp_path):
        other = write_circuit_tracer(load_case("skip_transcoder"), tmp_path / "other") / "layer_3.safetensors"
        files = yaml.safe_load((scope[1] / "config.yaml").read_text())["transcoders"]
        configure(scope[1], transcoders=[*files[:-1], str(other)])
        with pytest.raises(
            ValueError, match=r"layer_3.safetensors: is a transcoder of circuit-tracer, but .* of Gemma Scope"
        ):
            open_transcoders(scope[1])

    def test_a_file_of_no_known_layout_is_named(self, scope):
        save_file({"encoder.weight": torch.eye(3)}, scope[1] / "other.safetensors")
        configure(scope[1], transcoders=["other.safetensors"])
        with pytest.raises(ValueError, match=r"other.safetensors: has tensors encoder.weight; expected w_enc, w_dec"):
            open_transcoders(scope[1])

    def test_a_missing_file_is_named(self, scope):
        configure(scope[1], transcoders=["nothing.safetensors"])
        with pytest.raises(FileNotFoundError, match=r"nothing.safetensors: file is missing"):
            open_transcoders(scope[1])

    def test_cross_layer_files_of_circuit_tracer(self, clt):
        expected = open_transcoders(clt)
        files = sorted(path.name for path in clt.glob("*.safetensors"))
        configure(clt, transcoders=files)
        assert_same_weights(open_transcoders(clt), expected)
        configure(clt, transcoders=[file for file in files if file != "W_dec_2.safetensors"])
        with pytest.raises(
            ValueError, match="transcoders: tensor W_dec_2 is in none of the listed files; expected one"
        ):
            open_transcoders(clt)

    def test_encoder_and_decoder_in_one_file(self, clt):
        for layer in range(5):
            decoder = clt / f"W_dec_{layer}.safetensors"
            change(clt / f"W_enc_{layer}.safetensors", **load_file(decoder))
        expected = [load_file(clt / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"] for layer in range(5)]
        configure(clt, transcoders=[f"W_enc_{layer}.safetensors" for layer in range(5)])
        reader = open_transcoders(clt)
        assert all(torch.equal(reader.decoder(layer), expected[layer]) for layer in range(5))

    @pytest.mark.parametrize("revision", ["", "@v2", "?revision=v2"])
    def test_files_on_the_hub(self, scope, tmp_path, monkeypatch, revision):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        repo, commit = tmp_path / "hub" / "models--org--scope", "0123456789012345678901234567890123456789"
        shutil.copytree(tmp_path / "scope", repo / "snapshots" / commit / "sub")
        (repo / "refs").mkdir()
        (repo / "refs" / ("v2" if revision else "main")).write_text(commit)
        files = yaml.safe_load((scope[1] / "config.yaml").read_text())["transcoders"]
        configure(scope[1], transcoders=[file.replace("../scope", "hf://org/scope/sub") + revision for file in files])
        assert_same_weights(open_transcoders(scope[1]), open_transcoders(scope[0].transcoders))
