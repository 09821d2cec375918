"""Counts of public releases, as their authors give them: a partial download shows when they differ.

source -> split -> what the manifest of a complete one counts, in all or of a task. A sample is a picture or a clip
that has records; an expression is a sentence. Only counts that are published, or that follow from the published files,
stand here.

RefCOCO, RefCOCO+ (UNC splits), RefCOCOg (UMD): Yu et al. 2016, https://arxiv.org/abs/1608.00272, and Nagaraja et al.
2016, https://arxiv.org/abs/1608.00525. ReasonSeg: Lai et al. 2023, https://arxiv.org/abs/2308.00692. MeViS: Ding et
al. 2023, https://arxiv.org/abs/2308.08544. Ref-YouTube-VOS: Seo et al. 2020. Ref-DAVIS17: Khoreva et al. 2018. ADE20K:
SceneParse150. Mapillary Vistas: Neuhold et al. 2017.
"""

RELEASES: dict[str, dict[str, dict[str, int]]] = {
    "refcoco": {
        "train": {"samples": 16994, "expressions": 120624},
        "val": {"samples": 1500, "expressions": 10834},
        "testA": {"samples": 750, "expressions": 5657},
        "testB": {"samples": 750, "expressions": 5095},
    },
    "refcoco+": {
        "train": {"samples": 16992, "expressions": 120191},
        "val": {"samples": 1500, "expressions": 10758},
        "testA": {"samples": 750, "expressions": 5726},
        "testB": {"samples": 750, "expressions": 4889},
    },
    "refcocog": {
        "train": {"samples": 21899, "expressions": 80512},
        "val": {"samples": 1300, "expressions": 4896},
        "test": {"samples": 2600, "expressions": 9602},
    },
    "reason_seg": {"train": {"referring": 239}, "val": {"referring": 200}, "test": {"referring": 779}},
    "ade20k": {"train": {"samples": 20210}, "val": {"samples": 2000}},
    "mapillary": {"train": {"samples": 18000}, "val": {"samples": 2000}},
    "mevis": {"train": {"samples": 1662, "expressions": 23051}, "valid_u": {"samples": 50, "expressions": 793}},
    "ref_youtube_vos": {"train": {"samples": 3471, "expressions": 12913}, "valid": {"samples": 202}},
    "ref_davis17": {"train": {"samples": 60}, "valid": {"samples": 30}},
}
