"""FF: the spectrum's mass at zero over training

Granziol (2020), section 3.2, figures 1 and 11 to 14: the mass of the Ritz value closest to zero (Gauss-Newton matrix),
or of the two closest (Hessian), after 100 Lanczos steps, is close to one at all epochs. The paper takes it for
the fraction of eigenvalues that are zero, and explains it by a bound on the rank. Here: the same masses, how they
depend on the steps m, the fraction within the smallest tolerance that the steps resolve, and all eigenvalues of the
Gauss-Newton matrix on few images. The quick form has LeNet with batch norm on 2000 images of CIFAR-10, analysed on 256
of them; the full one VGG-16 on CIFAR-100.

    python analyses/papers/rank_degeneracy.py --quick --data data --out papers
"""

from __future__ import annotations

from collections.abc import Sequence

from experiment import Experiment, started

import spectra
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

STEPS = (20, 40, 60, 80, 100)
COUNT = {"ggn": 1, "hessian": 2}  # Ritz values that the paper adds up
WORDS = {"ggn": "Gauss-Newton matrix", "hessian": "Hessian"}


def of_fewer_steps(spectrum: Spectrum, m: int) -> Spectrum:
    """What the same probes give after m steps."""
    parts = [Tridiagonal(one.alphas[:m], one.betas[:m]) for one in spectrum.tridiagonals]
    return Spectrum(parts, n=spectrum.n)


def main(arguments: Sequence[str] | None = None) -> None:
    exp = Experiment(__file__, __doc__, arguments)
    if exp.quick:
        data, images, few = exp.needs("cifar10.npz"), 256, 60
        chosen = ("--epochs", 6, "--every", 2, "--set", "validation=8000", "--set", "batch_size=128")
        folder = exp.train("cifar10-lenet-bn", *chosen, "--set", "learning_rate=0.05", data=data)
    else:
        data, images, few = exp.needs("cifar-100-binary"), 50000, 100
        folder = exp.train("ff-cifar100-vgg16-sgd", "--every", 25, data=data)
    both = ("--operator", "hessian", "--operator", "ggn", "--metrics", "none", "--no-check")
    trajectory = exp.analyze(folder, *both, "-m", STEPS[-1], "-k", 1, "--samples", images)
    exact = exp.analyze(
        folder, "--last", "--operator", "ggn", "-m", STEPS[-1], "-k", 2, "--samples", few, "--exact-spectrum", few,
        "--dtype", "float64", "--metrics", "none", "--no-check",
    )[0]  # fmt: skip
    found = {name: [r for r in trajectory if r.operator == name and r.spectrum is not None] for name in COUNT}
    report(exp, found, exact, images)
    draw(exp, found, exact)
    exp.write()


def mass(record: spectra.Record) -> spectra.Estimate:
    """The mass that the paper takes for the degeneracy."""
    found: spectra.Estimate = record.spectrum.closest(COUNT[record.operator]).mass
    return found


def report(exp: Experiment, found: dict[str, list[spectra.Record]], exact: spectra.Record, images: int) -> None:
    facts = exact.facts
    zero = max(0.0, 1 - images * (facts["d_y"] - 1) / facts["n_parameters"])
    counted = f" With {images} images, counting alone puts {zero:.4f} of the eigenvalues at zero."
    setting = "LeNet with batch norm on CIFAR-10 in place of VGG-16." if exp.quick else ""
    for name, records in found.items():
        masses = [mass(record).value for record in records]
        exp.add(
            f"{WORDS[name]}: the mass of the {'Ritz value' if name == 'ggn' else 'two Ritz values'} closest to zero is "
            "close to 1 at all epochs",
            "above 0.9639, by the bound for VGG-16",
            ", ".join(f"{one:.4f} (epoch {record.epoch:g})" for one, record in zip(masses, records)),
            "one probe",
            "holds" if min(masses) > 0.9 else "holds in part" if min(masses) > 0.5 else "does not hold",
            setting + " Close to 1: above 0.9; in part: above 0.5." + (counted if name == "ggn" else ""),
        )
        last = records[-1].spectrum
        by_steps = [of_fewer_steps(last, m).closest(COUNT[name]).mass.value for m in STEPS]
        spread = max(by_steps) - min(by_steps)
        exp.add(
            f"{WORDS[name]}: this mass is a property of the matrix (it does not depend on the steps)",
            "-",
            ", ".join(f"{one:.4f} (m = {m})" for one, m in zip(by_steps, STEPS)),
            "same probe",
            "holds" if spread < 0.01 else "holds in part" if spread < 0.1 else "does not hold",
            f"Last epoch. Held to be so within 0.01; in part within 0.1. Spread {spread:.3f}.",
        )
        near = [record.spectrum.rank_degeneracy() for record in records]
        exp.add(
            f"{WORDS[name]}: most eigenvalues are within what 100 steps resolve of zero",
            "-",
            "; ".join(f"{one.lower:.4f} to {one.upper:.4f} within {one.tau:.2g}" for one in near),
            f"bracket of the count; the probe adds {_probe_error(near, facts['n_parameters']):.1g}",
            "holds" if all(one.resolved and one.lower > 0.9 for one in near)
            else "holds in part" if any(one.lower > 0.9 for one in near) else "does not hold",
            "Over the epochs. Within a tolerance, which is not zero: "
            + ", ".join(f"{one.tau / record.spectrum.spectral_norm().value:.0e}" for one, record in zip(near, records))
            + " of the largest eigenvalue. Held: all resolved, above 0.9.",
        )  # fmt: skip
    all_of_them = exact.exact_spectrum
    rank, by_counting, n = all_of_them.rank(), all_of_them.rank_bound, all_of_them.n
    closest = exact.spectrum.closest(1)
    exp.add(
        "Gauss-Newton matrix: the mass of the closest Ritz value is the fraction of eigenvalues that are zero",
        "equal",
        f"{closest.mass.value:.4f} by Ritz value {closest.value.value:.2g}; exactly {1 - rank / n:.4f} are zero",
        f"{closest.mass.stderr:.1g} (probes); none (exact)",
        "holds"
        if abs(closest.mass.value - (1 - rank / n)) < 3 * (closest.mass.stderr or 0) + 1e-3
        else "does not hold",
        f"On {all_of_them.num_samples} images, where counting alone allows a rank of at most {by_counting} of {n}.",
    )
    bound = int(exact.facts["rank_bound_ff"])
    exp.add(
        "the rank is at most 4 d_y (sum of widths + d_x)",
        f"{bound} here" + (f", above the number of parameters, {n}" if bound > n else ""),
        f"rank {rank} on {all_of_them.num_samples} images; {by_counting} by counting",
        "exact",
        "not testable here" if min(by_counting, n) <= bound else "holds" if rank <= bound else "does not hold",
        "No theorem: docs/corrections.md has a network that violates it. So few images cannot.",
    )


def _probe_error(near: Sequence[spectra.Estimate], n: int) -> float:
    """The largest standard error of a count of one probe: sqrt(2 f (1 - f) / (n + 2))."""
    return float(max((2 * one.value * (1 - one.value) / (n + 2)) ** 0.5 for one in near))


def draw(exp: Experiment, found: dict[str, list[spectra.Record]], exact: spectra.Record) -> None:
    looks = {"ggn": ("#0072B2", "o-"), "hessian": ("#D55E00", "s--")}
    with exp.figure(10, 3.4) as figure:
        over, steps, values = figure.subplots(1, 3)
        for name, records in found.items():
            colour, look = looks[name]
            over.plot([r.epoch for r in records], [mass(r).value for r in records], look, color=colour,
                      label=f"{WORDS[name]}, mass of {COUNT[name]}")  # fmt: skip
            near = [record.spectrum.rank_degeneracy() for record in records]
            over.fill_between([r.epoch for r in records], [one.lower for one in near], [one.upper for one in near],
                              color=colour, alpha=0.25, label="its count within the tolerance")  # fmt: skip
            last = records[-1].spectrum
            steps.plot(
                STEPS, [of_fewer_steps(last, m).closest(COUNT[name]).mass.value for m in STEPS], look, color=colour
            )
        over.set(xlabel="epoch", ylabel="fraction of the spectrum")
        low = min(mass(record).value for records in found.values() for record in records)
        for ax in (over, steps):
            ax.set_ylim(0.95 * low, 1.01)
        over.legend(fontsize=7, loc="lower left")
        steps.set(xlabel="Lanczos steps m", ylabel="mass closest to zero, last epoch", xticks=STEPS)
        eigenvalues = exact.exact_spectrum.eigenvalues
        positive = eigenvalues[eigenvalues > 10 * exact.exact_spectrum.noise * eigenvalues[0]]
        values.plot(range(1, len(positive) + 1), positive, color="#000000")
        values.axvline(exact.exact_spectrum.rank_bound, linestyle=":", color="#666666")
        values.set(xlabel=f"index, of {exact.exact_spectrum.n} (dotted: rank by counting)", yscale="log")
        values.set_title(f"eigenvalues on {exact.exact_spectrum.num_samples} images", loc="left", fontsize=8)


if __name__ == "__main__":
    started(main)
