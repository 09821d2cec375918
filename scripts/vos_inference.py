"""Track objects through videos with SAM 2, from their masks on the first frame or on later ones: DAVIS, MOSE, SA-V.

    python scripts/vos_inference.py --sam2_checkpoint sam2.1_hiera_large.pt --base_video_dir DAVIS/JPEGImages/480p \\
        --input_mask_dir DAVIS/Annotations/480p --output_mask_dir outputs/davis [--video_list_file LIST.txt]

The same as `sa2va vos`; the code is sa2va_hf/commands/vos_inference.py.
"""

import sys

from sa2va_hf.commands.vos_inference import main

if __name__ == "__main__":
    sys.exit(main())
