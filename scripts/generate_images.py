"""Generate pictures of object parts with a diffusion model.

    python scripts/generate_images.py parts.yaml --model FOLDER_OR_HUB_ID --output DIR

The same as `sa2va generate-images`; the code is sa2va_hf/commands/generate_images.py.
"""

from sa2va_hf.commands.generate_images import main

if __name__ == "__main__":
    main()
