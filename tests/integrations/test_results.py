"""The tables and the record of whatever a task has."""

import json

from torch import nn

from evonorm_plugins.integrations.results import report_lines, write_results

RESULTS = {
    "bbox": {"AP": 12.345, "AP50": 50.0, "APs": float("nan"), "AP-cat": 1.0},
    "segm": {"AP": 1.0, "AP50": 2.0},
    "sem_seg": {"mIoU": 40.0, "IoU-cat": 40.0, "pACC": 90.0},
    "box_proposals": {"AR@100": 10.0, "AR@1000": 20.0},
}


def test_tasks_with_ap_share_a_table():
    assert report_lines(RESULTS, None, "val") == [
        "AP in percent on val:\n"
        "task       AP    AP50     APs\n"
        "bbox    12.35   50.00     nan\n"
        "segm     1.00    2.00     nan",
        "mIoU in percent on val:\n"
        "task        mIoU    pACC\n"
        "sem_seg    40.00   90.00",
        "AR@100 in percent on val:\n"
        "task            AR@100 AR@1000\n"
        "box_proposals    10.00   20.00",
    ]  # fmt: skip
    assert report_lines({}, None, "val") == []


def test_the_record_says_what_is_an_ap(tmp_path):
    path = write_results(tmp_path, nn.Linear(1, 1), RESULTS, None, dataset="val")
    record = json.loads(path.read_text())
    assert record["ap_percent"]["bbox"] == {**RESULTS["bbox"], "APs": None}
    assert set(record["ap_percent"]) == {"bbox", "segm"}
    assert record["percent"] == {k: RESULTS[k] for k in ("sem_seg", "box_proposals")}
    record = json.loads(write_results(tmp_path, nn.Linear(1, 1), {}, None).read_text())
    assert (record["ap_percent"], "percent" in record) == ({}, False)
