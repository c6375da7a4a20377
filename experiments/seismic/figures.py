"""The figures of a survey and what was made of it."""

import numpy as np

from experiments.harness import figures
from experiments.seismic import tasks


def draw_section(survey, task, result, figure):
    """The data, the result and the truth where there is one; one scale of color where the units are the same."""
    images = {"data": np.asarray(task.before), task.label: task.scale * np.asarray(result)}
    if task.truth is not None:
        images[f"true {task.label}" if task.truth is not survey.traces else "true"] = task.scale * np.asarray(task.truth)
    first, last = survey.shown or (0, len(survey.traces))
    images = {name: image[first:last] for name, image in images.items()}
    largest = np.percentile(np.abs(images["data"]), 98.5)
    symmetric = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    results = np.concatenate([images[name].ravel() for name in list(images)[1:]])
    others = symmetric if task.same_unit else dict(zip(("vmin", "vmax"), np.percentile(results, (1, 99)), strict=True))
    panels = figure.subplots(1, len(images), sharey=True, squeeze=False)[0]
    shown = None
    for i, (axes, (name, image)) in enumerate(zip(panels, images.items(), strict=True)):
        shown = axes.imshow(
            image.T,
            aspect="auto",
            extent=_extent(survey, first, last),
            interpolation="antialiased",
            **(others if i else symmetric),
        )
        axes.set(title=name + " (▼ wells)" * (bool(survey.wells) and name == task.label), xlabel="trace")
        axes.grid(False)
        if survey.wells and name == task.label:
            axes.plot(survey.wells, [survey.delay] * len(survey.wells), "kv", markersize=5, clip_on=False)
    panels[0].set_ylabel("two-way time (s)")
    figure.colorbar(shown, ax=panels[-1], label=task.unit or "amplitude")


def draw_wavelet(survey, wavelet, task, result, figure):
    """The wavelets, and the amplitude spectra of the data, the result and the truth."""
    left, right = figure.subplots(1, 2)
    time = 1000 * survey.interval * (np.arange(len(wavelet)) - len(wavelet) // 2)
    if survey.wavelet is not None:
        true = 1000 * survey.interval * (np.arange(len(survey.wavelet)) - len(survey.wavelet) // 2)
        left.plot(true, survey.wavelet, color="0.6", linewidth=4, label="of the data")
    left.plot(time, wavelet, label="of the inversion")
    left.set(xlabel="time (ms)", ylabel="amplitude", title="wavelet")
    left.legend(fontsize=8, loc="upper right")
    label = "its reflectivity" if task.label == "impedance" else task.label
    truth = None if task.truth is None else task.spectral(task.truth)
    spectra = {"data": task.before, label: task.spectral(result), "true": truth}
    for (name, section), color in zip(spectra.items(), ("C0", "C3", "0.6"), strict=True):
        if section is not None:
            found = tasks.smoothed_spectrum(section, survey.interval)
            right.plot(found.frequency, found.decibels, label=name, color=color)
    right.axhline(-6, color="k", linewidth=0.7, linestyle=":")
    right.axhline(-10, color="k", linewidth=0.7, linestyle=":")
    right.set(xlabel="frequency (Hz)", ylabel="amplitude (dB re peak)", title="spectra", ylim=(-42, 3))
    right.legend(fontsize=8, loc="lower left")


def draw_traces(survey, task, result, predicted, figure):
    """A few traces: what was recorded and what the result predicts, and beside it the result over the truth there.

    Each of them is a well that the inversion has not seen.
    """
    count = len(survey.traces)
    chosen = [int(i) for i in survey.judged[np.linspace(0, len(survey.judged) - 1, 5).astype(int)[1:-1]]]
    time = survey.delay + survey.interval * np.arange(survey.traces.shape[-1])

    def draw(axes, values, **style):
        if task.label == "reflectivity":  # spikes are no curve
            axes.hlines(time, 0, values, **style)
        else:
            axes.plot(values, time, **style)

    panels = figure.subplots(1, 2 * len(chosen), sharey=True, squeeze=False)[0]
    for trace, data_axes, result_axes in zip(chosen, panels[::2], panels[1::2], strict=True):
        data_axes.plot(task.before[trace], time, color="0.6", linewidth=2.5, label="recorded")
        data_axes.plot(predicted[trace], time, linewidth=1, label="predicted")
        data_axes.set_title(f"trace {trace} of {count}", fontsize=9)
        if task.truth is not None:
            draw(result_axes, task.scale * task.truth[trace], color="0.6", linewidth=3, label="true")
        draw(result_axes, task.scale * result[trace], color="C3", linewidth=1, label="found")
        result_axes.set_title(task.label, fontsize=9)
        for axes in (data_axes, result_axes):
            axes.tick_params(axis="x", labelsize=7)
            axes.margins(y=0)
    for axes in panels[:2]:
        axes.legend(fontsize=7, loc="lower left", frameon=True)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("two-way time (s)")


def draw_convergence(curves, figure):
    """Objective above the smallest found, against the iteration."""
    axes = figure.subplots()
    for (name, curve), style in zip(curves.items(), ("-", "-", "--", "-"), strict=True):  # without a restart two are one
        axes.plot(np.arange(1, len(curve)), np.maximum(curve[1:], 1e-7), style, label=name)
    axes.set(xscale="log", yscale="log", xlabel="iteration", ylabel="objective above the best, relative", ylim=(1e-6, None))
    axes.legend(loc="lower left")
    figures.plain_log(axes.xaxis)


def draw_noise(levels, found, figure):
    """Quality of the reflectivity on traces that nothing was chosen on, against the noise of the data."""
    axes = figure.subplots()
    for (name, values), style in zip(found.items(), ("s-", "o-", "o--", "D-"), strict=True):
        axes.plot(levels, values, style, markersize=5, label=name)
    axes.set(xlabel="signal to noise ratio of the traces (dB)", ylabel="that of the reflectivity (dB)")
    axes.set_xticks(levels)
    axes.legend()


def _extent(survey, first, last):
    samples = survey.traces.shape[-1]
    half = survey.interval / 2
    return (first - 0.5, last - 0.5, survey.delay + samples * survey.interval - half, survey.delay - half)
