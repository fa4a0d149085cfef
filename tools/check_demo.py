"""Hold the demonstration to what the documentation says of it: python tools/check_demo.py emc-demo/summary.json."""

import json
import sys
from pathlib import Path

rows = json.loads(Path(sys.argv[1]).read_text())
mean, untrained = rows["mean reaction of the training listeners"], rows["EMC, untrained"]
full, without, zeros = rows["EMC, face and speech"], rows["EMC, face missing"], rows["original, zeros for the face"]
claims = {
    "EMC has at most 0.7 of the mean reaction's squared error on emotion": full["mse_emotion"] <= 0.7 * mean["mse_emotion"],
    "and at most half of the untrained model's": full["mse_emotion"] <= 0.5 * untrained["mse_emotion"],
    "its FRCorr is at least 1.0 above both": full["frcorr"] >= 1.0 + max(mean["frcorr"], untrained["frcorr"]),
    "without a face it has at most 0.85 of the mean reaction's squared error": without["mse_emotion"] <= 0.85 * mean["mse_emotion"],
    "less than the original that is fed zeros for the face": without["mse_emotion"] < zeros["mse_emotion"],
    "and its FRCorr is at least 0.3 above that original's": without["frcorr"] >= 0.3 + zeros["frcorr"],
}
for claim, holds in claims.items():
    print("holds " if holds else "FAILS ", claim)
sys.exit(not all(claims.values()))
