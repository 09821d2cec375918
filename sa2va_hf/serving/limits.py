"""How much one client may ask of a server, and what it is told when it asks for more."""

from __future__ import annotations

from dataclasses import dataclass


class Refused(ValueError):
    """A request that is not answered: an HTTP status, a code for programs, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param

    def json(self) -> dict[str, dict[str, str | None]]:
        """The form in which OpenAI's API reports errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of what runs together.

    Args:
        max_body: bytes of a request. max_bytes: of one image or clip, decoded from base64.
        max_pixels: of an image or of a frame. max_frames: of a video.
        max_objects: [SEG] of an answer; it ends there. max_new_tokens: tokens of an answer.
        max_text: characters of a conversation. max_regions: region prompts of a conversation.
        max_answer_bytes: of the masks that one batch of answers can fill; a large image is allowed fewer [SEG] than
            `max_objects`, and is refused where it leaves no room for one. Of a video one frame is in memory, and as
            many bytes of run lengths may wait for its client.
    """

    max_body: int = 32 * 2**20
    max_bytes: int = 20 * 2**20
    max_pixels: int = 25_000_000
    max_frames: int = 300
    max_objects: int = 16
    max_new_tokens: int = 512
    max_text: int = 16_000
    max_regions: int = 16
    max_answer_bytes: int = 2**30

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if value < 1]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: expected at least 1")

    def check_bytes(self, count: int, what: str) -> None:
        if count > self.max_bytes:
            raise Refused(413, "too_large", f"{what} has {count} bytes; this server takes {self.max_bytes}")

    def check_pixels(self, width: int, height: int, what: str) -> None:
        if width * height > self.max_pixels:
            asked = f"{width} x {height} = {width * height} pixels"
            raise Refused(
                413, "too_large", f"{what} has {asked}; this server takes {self.max_pixels}: send it smaller"
            )

    def check_frames(self, count: int) -> None:
        if count > self.max_frames:
            message = f"the video has more than {self.max_frames} frames, which is what this server takes: send a part"
            raise Refused(413, "too_large", message)

    def objects(self, pixels: int, cells: int, regions: int = 0) -> int:
        """How many [SEG] an answer may have about an image or frames of `pixels`, with logits of `cells` each.

        Raises:
            Refused: 413 when there is no room for one.
        """
        room = self.max_answer_bytes - pixels * (3 + regions)  # the image and its region prompts are in memory too
        count = room // object_bytes(pixels, cells)
        if count < 1:
            message = f"a mask of {pixels} pixels does not fit this server's memory: send it smaller"
            raise Refused(413, "too_large", message)
        return min(count, self.max_objects)


def object_bytes(pixels: int, cells: int) -> int:
    """Memory of one object on one frame: its mask packed and unpacked, and four bytes per cell of its logits."""
    return -(-pixels // 8) + 4 * cells + pixels
