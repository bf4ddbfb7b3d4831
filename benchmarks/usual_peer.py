"""The usual script, as it is written everywhere: timm in eager mode, pooled features, scikit-learn on top.

``python benchmarks/usual_peer.py photos.csv --weights FILE --out head.npz [--c 0.01]``

photos.csv has path, label, split; the rows of train and val are learned from, those of test are judged, once, at the
end. The network's own preprocessing (timm's configuration: 224 px). The regularisation C is chosen by five folds of
the photos learned from, unless it is given. The last line of output is a JSON object with the time at each step
(seconds since 1970) and the top-1.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, Dataset

#: Tried by five folds.
CS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)


class Photos(Dataset):
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


@torch.inference_mode()
def features(model, paths, transform, workers):
    """Pooled features [N, 1280] of JPEG files."""
    loader = DataLoader(Photos(paths, transform), batch_size=32, num_workers=workers)
    return np.concatenate([model(images).numpy() for images in loader])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", required=True, help="safetensors, as timm names them")
    parser.add_argument("--out", required=True)
    parser.add_argument("--c", type=float, help="[default: chosen by five folds]")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with chosen.photos.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    learned = [row for row in rows if row["split"] in ("train", "val")]
    tested = [row for row in rows if row["split"] == "test"]
    y = np.array([row["label"] for row in learned])

    overlay = {"file": chosen.weights}
    model = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0
    ).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    told = {"looking": time.time()}
    x = features(model, [row["path"] for row in learned], transform, chosen.workers)
    told["looked"] = time.time()

    warnings.simplefilter("ignore", ConvergenceWarning)
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    if chosen.c is None:
        search = GridSearchCV(head, {"logisticregression__C": CS}, cv=5, n_jobs=chosen.workers, refit=False)
        chosen.c = search.fit(x, y).best_params_["logisticregression__C"]
    told |= {"searched": time.time(), "c": chosen.c}
    head.set_params(logisticregression__C=chosen.c).fit(x, y)
    scaler, linear = head[0], head[1]
    np.savez(chosen.out, mean=scaler.mean_, scale=scaler.scale_, coef=linear.coef_, bias=linear.intercept_)
    told["saved"] = time.time()

    z = features(model, [row["path"] for row in tested], transform, chosen.workers)
    told["right"] = int((head.predict(z) == np.array([row["label"] for row in tested])).sum())
    print(json.dumps({**told, "n_train": len(learned), "n_test": len(tested)}))


if __name__ == "__main__":
    main()
