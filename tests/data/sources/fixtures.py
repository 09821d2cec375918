"""A root on disk, exact samples and malformed inputs for every source: the table that test_every_source.py walks."""

from fixtures_of_clips import CLIPS
from fixtures_of_own import OWN
from fixtures_of_pictures import PICTURES
from fixtures_of_texts import TEXTS
from fixtures_of_tubes import TUBES

FIXTURES = {**PICTURES, **TEXTS, **CLIPS, **TUBES, **OWN}
