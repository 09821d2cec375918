"""Dependencies live here and nowhere else; pyproject.toml reads them from this file.

The lower bounds are the versions that `scripts/test_lowest.sh` installs and runs, not guesses.
"""

from setuptools import find_packages, setup

INSTALL = [
    "torch>=2.6.0",
    "torchvision>=0.21.0",
    "transformers>=5.3.0",  # 4.56 to 5.2 could run code from a config.json (CVE-2026-4372)
    "accelerate>=1.10.0",
    "peft>=0.18.0",
    "datasets>=4.0.0",
    "deepspeed>=0.18.0",
    "sam2>=1.1.0",
    "evaluate>=0.4.6",
    "numpy>=2.0.0",
    "pillow>=11.0.0",
    "pycocotools>=2.0.8",
    "pyyaml>=6.0.2",
    "safetensors>=0.6.0",
    "av>=14.1.0",  # writes the overlay clips, and reads video where decord has no wheel (arm64)
    "decord>=0.6.0; sys_platform == 'linux' and platform_machine == 'x86_64'",
]

SERVE = ["fastapi>=0.165.0", "uvicorn>=0.54.0"]
DEMO = ["gradio>=6.31.0"]
DIFFUSERS = ["diffusers>=0.42.0"]  # scripts/generate_images.py
BITSANDBYTES = ["bitsandbytes>=0.49.0"]  # the first that is tested; older ones quantise on GPUs only
SUPERVISION = ["supervision>=0.25.0"]  # Prediction.to_supervision
EXTRAS = {
    "diffusers": DIFFUSERS,
    "serve": SERVE,
    "demo": DEMO,
    "test": [
        *SERVE,
        *DEMO,
        *DIFFUSERS,
        *BITSANDBYTES,
        *SUPERVISION,
        "openai>=3.57.0",  # the client that the server is made for
        "selenium>=4.51.0",  # drives Debian's chromium, where it is installed
        "pytest>=8.3.0",
        "pytest-xdist>=3.6.0",
        "pip>=23.2",  # builds and installs the wheel that tests/test_wheel.py predicts with
        "setuptools>=77",
        "pycocoevalcap>=1.2",  # METEOR and CIDEr, where there is Java
        "sentencepiece>=0.2.0",  # what converted tokenizers are compared with
        "tensorboard>=2.18.0",
        "ruff==0.17.5",  # pinned: another release may format differently
    ],
    "quantization": [*BITSANDBYTES, "torchao>=0.18.0"],  # the LLM in 4 or 8 bits
    "supervision": SUPERVISION,
}

setup(
    name="sa2va_hf",
    version="0.1.0",
    description="Sa2VA (InternVL + SAM 2) on the Hugging Face stack: prepare, train, merge, segment.",
    license="Apache-2.0",
    packages=find_packages(include=["sa2va_hf", "sa2va_hf.*"]),
    package_data={
        "sa2va_hf": [
            "py.typed",
            "integrations/fiftyone/manifest.json",
            *(f"pretrained/**/*.{kind}" for kind in ("safetensors", "json", "jinja", "txt")),
        ]
    },
    python_requires=">=3.11",
    entry_points={"console_scripts": ["sa2va = sa2va_hf.commands:main"]},
    install_requires=INSTALL,
    extras_require=EXTRAS,
)
