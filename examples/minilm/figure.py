"""One figure: loss against steps, and what each method costs beside full fine-tuning."""

import matplotlib.pyplot as plt

COSTS = {
    "bytes of gradients": "gradients",
    "bytes of optimizer state": "optimizer\nstate",
    "bytes kept for the backward": "kept for\nthe backward",
    "bytes of checkpoint": "checkpoint",
}
COLOURS = {"full": "#888888", "packed": "#0072b2", "shira": "#d55e00", "packed in JAX": "#009e73"}
NAMES = {"full": "full", "packed": "packed, torch", "shira": "SHiRA (PEFT)", "packed in JAX": "packed, JAX"}


def smooth(losses):
    """Return the mean of each loss and up to nine before it."""
    return [sum(losses[max(0, i - 9) : i + 1]) / (i + 1 - max(0, i - 9)) for i in range(len(losses))]


def draw(report, path):
    """Write the figure as SVG."""
    rows = report["fine-tuning"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for method, row in rows.items():
        style = "--" if method == "packed in JAX" else "-"
        losses = smooth(row["losses"])
        left.plot(range(1, len(losses) + 1), losses, style, color=COLOURS[method], label=NAMES[method])
    left.set(xlabel="step", ylabel="loss of the last ten batches", ylim=(0, None))
    left.legend(frameon=False)
    measured = [method for method in rows if "seconds" in rows[method]]
    width = 0.8 / len(measured)
    for i, method in enumerate(measured):
        shares = [rows[method][cost] / rows["full"][cost] for cost in COSTS]
        places = [n + (i - (len(measured) - 1) / 2) * width for n in range(len(COSTS))]
        bars = right.bar(places, shares, width, color=COLOURS[method], label=NAMES[method])
        right.bar_label(bars, [f"{share:.2g}" for share in shares], fontsize=7)
    right.set(xticks=range(len(COSTS)), xticklabels=COSTS.values(), yscale="log", ylabel="share of full fine-tuning")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
