"""Metrics against the numbers of the original evaluation code: DAVIS, SA-V, Sa2VA, LISA, ReLA, LAVT, gRefCOCO, V*.

Run: SA2VA_TEST_DATA=... pytest tests/evaluation/test_golden_metrics.py
(golden/refs beside the samples holds the numbers; without it these tests are skipped.)
"""

import json
import math

import numpy as np
import pytest
from golden import references

from sa2va_hf.boxes import box_giou, box_iou
from sa2va_hf.evaluation import boxes, metrics
from sa2va_hf.evaluation import video_conventions as video
from sa2va_hf.evaluation.video_metrics import boundary_accuracy, region_similarity

CLIPS = ("bmx-trees", "camel", "multi", "synthetic", "synthetic_void")


def unpack(bits, shape):
    return np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(bool)


@pytest.fixture(scope="module")
def vos(shared_data):
    folder = references(shared_data)
    with np.load(folder / "D_vos.npz") as arrays:
        return json.loads((folder / "D_vos.json").read_text()), dict(arrays)


@pytest.fixture(scope="module")
def res(shared_data):
    folder = references(shared_data)
    expected, arrays = json.loads((folder / "E_res.json").read_text()), np.load(folder / "E_res.npz")
    shape = (expected["N"], expected["H"], expected["W"])
    return expected, *(unpack(arrays[name], shape) for name in ("gt", "pred", "ignore"))


# ---------------------------------------------------------------- D: video


def test_j_and_f_of_every_frame_object_and_void(vos):
    expected, arrays = vos
    compared = 0
    for name in expected["sequences"]:
        gt, pred = arrays[f"{name}.gt"], arrays[f"{name}.pred"]
        for number, figures in expected["davis"][name].items():
            masks = pred == int(number), gt == int(number)
            for suffix, void in (("", None), ("_void", gt == 255)):
                if f"J{suffix}" in figures:
                    j, f = figures[f"J{suffix}"], figures[f"F{suffix}"]
                    np.testing.assert_allclose(region_similarity(*masks, void), j, rtol=0, atol=1e-9)
                    np.testing.assert_allclose(boundary_accuracy(*masks, void), f, rtol=0, atol=1e-9)
                    compared += len(j)
            for measure in "JF":
                found = video.statistics(np.array(figures[measure]))
                assert found == pytest.approx(figures[f"{measure}_mean_recall_decay"], abs=1e-9)
    assert compared > 90


@pytest.mark.parametrize(
    ("tool", "function"), [("semi-supervised", video.davis), ("unsupervised", video.davis_unsupervised)]
)
def test_davis_tools(vos, tool, function):
    expected, arrays = vos
    expected = expected["davis"][f"tool_{tool}"]
    assert sorted(expected["sequences"]) == sorted(CLIPS)
    found = {}
    for name in CLIPS:
        scores = function(arrays[f"{name}.pred"], iter(arrays[f"{name}.gt"]))
        found |= {f"{name}_{number}": one for number, one in scores.items()}
    assert set(found) == set(expected["J_per_object"])
    for name, scores in found.items():
        assert scores.j.mean() == pytest.approx(expected["J_per_object"][name], abs=1e-9), name
        assert scores.f.mean() == pytest.approx(expected["F_per_object"][name], abs=1e-9), name
    for name, value in video.summarize_davis(found.values()).items():
        assert value == pytest.approx(expected[name.replace("&", "")], abs=1e-9), name


@pytest.mark.parametrize("skip", [True, False])
def test_sa_v_evaluator(vos, skip):
    expected, arrays = vos
    found = {}
    for name in expected["sequences"]:
        found[name] = video.sa_v(arrays[f"{name}.pred"], arrays[f"{name}.gt"], skip)
        figures = expected["sav"][name]["skip_first_last" if skip else "all_frames"]
        assert set(map(str, found[name])) == set(figures["J_percent"])
        for number, scores in found[name].items():
            np.testing.assert_allclose(scores.j, figures["per_frame_J"][str(number)], rtol=0, atol=1e-9)
            np.testing.assert_allclose(scores.f, figures["per_frame_F"][str(number)], rtol=0, atol=1e-9)
            assert 100 * scores.j.mean() == pytest.approx(figures["J_percent"][str(number)], abs=1e-9)
    ending = "skip" if skip else "noskip"
    for layout, without in (("davis", ()), ("sav", (255,))):  # there is no folder for 255
        figures = expected["sav"][f"tool_{layout}_folders_{ending}"]
        objects = [one for name in figures["videos"] for number, one in found[name].items() if number not in without]
        assert len(objects) == sum(map(len, figures["objects"].values()))
        for name, value in video.summarize_sa_v(objects).items():
            assert value == pytest.approx(figures[name.replace("&", "")], abs=1e-9), name


def expressions(vos):
    expected, arrays = vos
    for name, figures in expected["revos"].items():
        if name not in ("aggregate", "mevis_aggregate"):
            n, *shape = figures["shape"]
            targets = unpack(arrays[f"revos.{name}.targets"], (n, *shape)).swapaxes(0, 1)
            others = (unpack(arrays[f"revos.{name}.{part}"], tuple(shape)) for part in ("pred", "foreground"))
            yield name, figures, targets, *others


def test_revos_per_frame(vos):
    for name, figures, targets, pred, foreground in expressions(vos):
        found = video.expression(pred, targets, foreground)
        for measure in "JFAR":
            np.testing.assert_allclose(found[measure], figures[measure], rtol=0, atol=1e-9, err_msg=name)


def test_overlapping_instances_break_the_released_a_and_r_only(vos):
    cases = {name: rest for name, *rest in expressions(vos)}
    figures, targets, pred, foreground = cases["two_instances_overlapping"]
    assert min(figures["J"]) == 1.0 and max(figures["R"]) == 0.0  # perfect, and yet
    found = video.expression(pred, targets, foreground, released=False)
    assert (found["A"] == 1).all() and (found["R"] == 1).all()
    figures, targets, pred, foreground = cases["two_instances_disjoint"]
    np.testing.assert_allclose(video.expression(pred, targets, foreground, released=False)["R"], figures["R"])


def test_revos_and_mevis_sums(vos):
    expected, _ = vos
    kinds = {0: "referring", 1: "reasoning", 2: "no_target"}
    scored = {name: video.expression(*masks) for name, _, *masks in swapped(vos)}
    aggregate = expected["revos"]["aggregate"]
    rows = [(kinds[aggregate["type_id"][name]], scored[name]) for name in aggregate["type_id"]]
    found = video.summarize_revos(rows)
    for part, name in (("referring", "referring"), ("reasoning", "reason"), ("overall", "overall")):
        for measure, value in found[part].items():
            assert value == pytest.approx(aggregate["result"][name][measure.replace("&", "")], abs=1e-9)
    mevis = expected["revos"]["mevis_aggregate"]
    for measure, value in video.summarize_mevis(scored[name] for name in mevis["expressions"]).items():
        assert value == pytest.approx(mevis[measure.replace("&", "")], abs=1e-9)


def swapped(vos):
    for name, figures, targets, pred, foreground in expressions(vos):
        yield name, figures, pred, targets, foreground


# ---------------------------------------------------------------- E: pictures


def test_lisa_and_sa2va(res):
    expected, gt, pred, ignore = res
    without_seg = pred.copy()
    without_seg[expected["sa2va_prediction_is_none"]] = False
    lisa, sa2va = expected["lisa"], expected["sa2va"]["grouped"]
    cases = [
        (pred, None, lisa["one_mask_per_image"]["ciou"], lisa["one_mask_per_image"]["giou_without_all_reduce_eps"]),
        (pred, None, lisa["grouped"]["ciou"], lisa["grouped"]["giou_without_all_reduce_eps"]),
        (pred, ignore, lisa["with_ignore_255"]["ciou"], lisa["with_ignore_255"]["giou_without_all_reduce_eps"]),
        (without_seg, None, sa2va["ciou"], sa2va["giou"]),
    ]
    for prediction, ignored, ciou, giou in cases:
        scores = metrics.CumulativeIoU()
        scores.add(prediction, gt, ignored)
        assert scores.result()["cIoU"] == pytest.approx(ciou, abs=1e-6)
        assert scores.result()["gIoU"] == pytest.approx(giou, abs=1e-6)
        assert scores.giou() == pytest.approx(giou, abs=1e-4)  # the epsilon is all that differs


def test_precision(res):
    expected, gt, pred, _ = res
    for kind, chosen in (("all", slice(None)), ("targets_only", gt.any((1, 2)))):
        scores = metrics.CumulativeIoU()
        scores.add(pred[chosen], gt[chosen])
        for name, value in expected["precision"][kind].items():
            assert scores.result()[name] == pytest.approx(value["ge"], abs=1e-9), name


@pytest.mark.parametrize("head", [False, True])
def test_grefcoco(res, head):
    expected, gt, pred, _ = res
    figures = expected["grefcoco_rela"]["no_target_from_head" if head else "no_target_from_empty_mask"]["grefcoco"]
    scores = metrics.GeneralizedIoU()
    for number, (prediction, target) in enumerate(zip(pred, gt, strict=True)):
        says = number in expected["no_target_head_says_empty"] if head else None
        scores.add(prediction, target, says)
    found = scores.result()
    for name, value in figures.items():
        scale = 1 if name.endswith("_acc") else 100
        assert scale * found[name] == pytest.approx(value, abs=1e-6 * scale), name


def test_grefcoco_with_targets_only(res):
    expected, gt, pred, _ = res
    figures = expected["grefcoco_rela"]["targets_only"]["refcoco"]
    scores = metrics.GeneralizedIoU()
    for prediction, target in zip(pred, gt, strict=True):
        if target.any():
            scores.add(prediction, target)
    found = scores.result()
    assert "N_acc" not in found  # no expression it could be about
    for name in ("gIoU", "cIoU", "Pr@0.7", "Pr@0.8", "Pr@0.9"):
        assert 100 * found[name] == pytest.approx(figures[name], abs=1e-4), name


def test_boxes(res):
    figures = res[0]["boxes"]
    true, drawn = np.array(figures["gt_xyxy"]), np.array(figures["pred_xyxy"])
    np.testing.assert_allclose(box_iou(drawn, true), figures["iou"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(box_giou(drawn, true), figures["giou"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(box_iou(drawn, true), figures["vstar_iou"], rtol=0, atol=1e-6)
    for strict, name in ((False, "acc_at_05_inclusive"), (True, "acc_at_05_strict"), (True, "vstar_acc_strict")):
        scores = boxes.BoxAccuracy(strict=strict)
        for pair in zip(drawn, true, strict=True):
            scores.add(*pair)
        assert scores.result()["Acc@0.5"] == pytest.approx(figures[name], abs=1e-9)


def test_grec(res):
    figures = res[0]["grec"]
    scores = boxes.GeneralizedBoxes()
    for sample in figures["samples"]:
        true = np.array(sample["gt_xywh"], float).reshape(-1, 4)
        true[:, 2:] += true[:, :2]
        scores.add(sample["boxes_xyxy"], sample["scores"], true[:0] if sample["no_target"] else true)
    expected = figures["result"]
    assert scores.result() == pytest.approx(
        {"F1": expected["F1_score"], "N_acc": expected["N_acc"], "T_acc": expected["T_acc"]}, abs=1e-9
    )
