"""Fine-tune with the Hugging Face Trainer: hold what is frozen, and save what learns with each checkpoint.

`MaskedTraining` is a callback for `transformers.Trainer`. It holds the frozen entries of masked layers while the
optimizer steps, weight decay included. It writes a small file with what learned beside each checkpoint. The Trainer's
own checkpoints are those of the plain model, so resuming works as ever.

    python examples/trainer.py
"""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from maskedlinear_torch import assert_frozen, columns, hold_frozen, load_packed, mask_linears, rows, save_packed

FILE = "learned.safetensors"


class MaskedTraining(TrainerCallback):
    """Hold frozen entries in every step, and save what learned with every checkpoint."""

    def on_train_begin(self, args, state, control, *, model, optimizer, **rest):
        """Hook the optimizer that steps: Accelerate's wrapper hands on to it."""
        self.hold = hold_frozen(getattr(optimizer, "optimizer", optimizer), model)

    def on_save(self, args, state, control, *, model, **rest):
        """Write the values beside the Trainer's own files."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            save_packed(folder / FILE, model)

    def on_train_end(self, args, state, control, **rest):
        """Let the optimizer go."""
        self.hold.remove()


class Classifier(nn.Module):
    """Digits, as the Trainer wants a model: it returns the loss with the logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, pixels, labels=None):
        """Return the loss, if there are labels, and the logits."""
        logits = self.head(self.hidden(pixels).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits} if labels is not None else logits


def masked():
    """Return the model of which a quarter of the hidden layer's columns and five classes learn, and no bias."""
    model = Classifier()
    masks = {"hidden": columns(range(24, 40)), "head": rows(range(5))}
    return mask_linears(model, masks, freeze_others=True)


def trainer(model, folder, steps):
    """Return a Trainer that saves every 10 steps."""
    images, labels = load_digits(return_X_y=True)
    rows_of_data = [
        {"pixels": torch.tensor(image / 16, dtype=torch.float32), "labels": int(label)}
        for image, label in zip(images[:512], labels[:512], strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=32, learning_rate=0.01, weight_decay=0.1,
        save_steps=10, report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", seed=0,
        lr_scheduler_type="constant", remove_unused_columns=False,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=rows_of_data, callbacks=[MaskedTraining()])


def run(folder):
    """Train 20 steps at once, and 20 steps that stop after 10 and are resumed.

    Returns:
        How many entries were proved frozen; the largest difference of the resumed run; whether the small file gives the
        same model; its size and that of the Trainer's file.
    """
    folder = Path(folder)
    before = {name: value.clone() for name, value in masked().state_dict().items()}
    whole = masked()
    trainer(whole, folder / "whole", 20).train()
    trainer(masked(), folder / "parts", 10).train()
    resumed = masked()
    trainer(resumed, folder / "parts", 20).train(resume_from_checkpoint=str(folder / "parts" / "checkpoint-10"))
    assert_frozen(before, resumed)
    last = folder / "whole" / "checkpoint-20"
    loaded = load_packed(last / FILE, Classifier())
    x = torch.ones(1, 64)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    return {
        "frozen": assert_frozen(before, whole),
        "resumed differs by": max((one - other).abs().max().item() for one, other in pairs),
        "loaded is the same": torch.equal(loaded(x), whole(x)),
        "bytes": (last / FILE).stat().st_size,
        "bytes of the Trainer's": (last / "model.safetensors").stat().st_size,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for what, value in run(folder).items():
            print(f"{what}: {value}")
