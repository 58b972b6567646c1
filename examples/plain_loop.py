"""A plain training loop over the three verbs: no recipe, no trainer, no hooks."""

from __future__ import annotations

import torch

from kirie import UNet, open_dataset
from kirie.data.augment import PRESETS
from kirie.data.batch import AugmentedSamples, BatchPlan, TrainingLoader
from kirie.demo import make_demo
from kirie.metrics.semantic import SemanticMetric


def main(folder: str = "demo/data", pictures: int = 120, epochs: int = 8) -> float:
    """Trains a U-Net on the demo's pictures, prints what it does, and returns its mean IoU on the val pictures."""
    data = make_demo(folder, pictures=pictures)
    training = open_dataset(data, "train", task="semantic")
    validation = training.only("val")
    samples = AugmentedSamples(training, PRESETS["light"], size=(128, 128))
    loader = TrainingLoader(samples, BatchPlan(len(training), batch_size=8))

    model = UNet(3, training.classes, width=16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        model.train()
        for batch in loader.epoch(epoch):
            raw = model(batch.images.float() / 255)  # (B, 3, H, W) in [0, 1]
            losses = model.loss(raw, batch.truths)
            loss = torch.stack(list(losses.values())).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in losses.items()))

    model.eval()
    metric = SemanticMetric(validation.classes)
    with torch.inference_mode():
        for index in range(len(validation)):
            sample = validation[index]
            image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
            (result,) = model.decode(model(image), [sample.truth.size])
            metric.update(result, sample.truth)
    report = metric.compute()
    print(f"mIoU {report.score:.3f}. {report.convention}")
    return float(report.score)


if __name__ == "__main__":
    main()
