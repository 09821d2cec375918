"""Laws of publishing data: rows and schema arrive as they are, media inside, and the card says what it is."""

import io

import pyarrow.parquet
import pytest
import yaml
from datasets import load_from_disk
from PIL import Image
from stub_hub import stub_hub, use

from sa2va_hf.checkpoints.card import head_of
from sa2va_hf.data.prepare.publish import push_dataset
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.schema import FEATURES


@pytest.fixture
def stub(monkeypatch):
    with stub_hub() as server:
        use(server, monkeypatch)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.address)
        yield server


def test_a_prepared_dataset_arrives_with_schema_and_card(stub, tmp_path):
    prepare("shapes", None, "train", tmp_path / "mine", embed_media=True, options={"count": 3, "size": 64})
    push_dataset(tmp_path / "mine", "mine", private=True, license="cc0-1.0")
    files = stub.repos["datasets/user/mine"]
    (parquet,) = [content for name, content in files.items() if name.endswith(".parquet")]
    rows = pyarrow.parquet.read_table(io.BytesIO(parquet)).to_pylist()
    assert rows == list(load_from_disk(str(tmp_path / "mine")))
    assert rows[0]["frames"][0]["bytes"]
    (tmp_path / "README.md").write_bytes(files["README.md"])
    head = head_of(tmp_path / "README.md")
    assert {entry["name"] for entry in head["dataset_info"]["features"]} == set(FEATURES)
    assert head["license"] == "cc0-1.0" and "sa2va" in head["tags"]
    assert "| samples | 3 |" in files["README.md"].decode() and str(tmp_path) not in yaml.safe_dump(head)


def test_media_that_stay_on_this_machine_are_refused(stub, tmp_path):
    for name, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        Image.new(mode, (32, 32), 255 if mode == "L" else 0).save(tmp_path / "raw" / name / "a.png")
    prepare("png_masks", tmp_path / "raw", "train", tmp_path / "mine", options={"phrase": "the square"})
    with pytest.raises(ValueError, match="1 frames or videos are files of this machine.* with --embed_media"):
        push_dataset(tmp_path / "mine", "mine")
    with pytest.raises(ValueError, match=r"expected a folder that prepare_data\.py wrote, there is no manifest\.json"):
        push_dataset(tmp_path, "mine")
    assert not stub.requests
