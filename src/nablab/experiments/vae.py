"""The variational autoencoder: its bound, the evidence, and the gap between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from nablab import baselines, data, metrics, models, plots, training
from nablab.contract import (
    Answer,
    Claim,
    Condition,
    Experiment,
    Figure,
    Lab,
    Level,
    Record,
    Records,
    Reported,
    Trial,
    Trials,
)
from nablab.data.fields import ImagesField
from nablab.errors import UsageError
from nablab.models.fields import Activation, OwnModelField
from nablab.settings import (
    Distinct,
    Epochs,
    Ge,
    Le,
    Lt,
    NotNegative,
    Pixels,
    Positive,
    Rising,
    Samples,
    Steps,
)
from nablab.settings.kinds import YOURS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nablab.contract.laboratory import Seeds
    from nablab.training import Moment

Model = Literal["dense", "linear"]
MODELS: tuple[Model, ...] = get_args(Model)
DENSE, LINEAR = MODELS
NONE, MEAN_LOSS = "none", "mean-loss"
SHOWN, SIDE, BETWEEN, CURVE = 4, 12, 10, 20
# Codes drawn per image for a bound; images at once; training images whose bound is taken.
DRAWS, AT_ONCE, MOST_SEEN = 8, 1_000, 10_000
MEASURED = 500  # training images that instruments get
# Of Adam on the covariance. Of 0.02, 0.05 and 0.1 the one that came nearest within 600
# steps on MNIST and on digits, over three seeds each.
LINEAR_RATE = 0.05
CLOSE = 0.01  # nats; more than this the quadrature's own error must not be

Size = Annotated[int, Ge(1), Le(100_000)]
Draws = Annotated[int, Ge(1), Le(100_000)]
Beta = Annotated[float, Ge(0), Le(1_000)]


@dataclass(frozen=True)
class Vae(Experiment):
    """What does the latent space of a variational autoencoder hold?

    A variational autoencoder (VAE) says how images come about: draw a code z of a few
    numbers from a standard normal distribution, decode it to a chance for each pixel,
    and throw a coin for each (Kingma and Welling 2014). How likely is an image x under
    this? Its evidence log p(x) is an integral over all codes, which nobody can compute
    when a code has many numbers. So an encoder guesses which codes may have made x, a
    normal distribution q, and one maximizes the evidence lower bound (ELBO):

    ELBO = mean of log p(x | z) over q  -  KL(q, standard normal).

    The first part is the reconstruction, the second the divergence: what the code costs,
    in nats. Both are sums: over all pixels, over all numbers of the code. A mean over
    784 pixels instead makes the divergence 784 times as heavy. Course D did that, with
    a weight β = 0.001 on the divergence. That is β = 0.784 on the sum, nearly the bound
    itself, and not "a thousandth". With β = 1 on the mean the code dies: β is 784, and
    telling images apart costs more than it gains. Every unit is then collapsed: its codes
    are the same for all images.

    With codes of two numbers there is no need to guess. A sum over a grid in the plane
    gives log p(x) to a thousandth of a nat, and the gap to the bound can be split (Cremer
    et al. 2018). The approximation gap is what the best normal distribution for this
    very image loses against the true posterior. The amortization gap is what the
    encoder loses against that one, because it must do for all images. Between bound and
    evidence lies the importance weighted bound of k codes (IWAE, Burda et al. 2016).

    A linear VAE with normal noise shows that the bound itself is not at fault: it is
    tight at the optimum, which probabilistic principal component analysis (PCA) gives in
    closed form (Lucas et al. 2019). Here its noise is trained, too, and its bound is
    computed without sampling.

    Pixels are gray, and a likelihood of zeros and ones needs zeros and ones. Training
    images are drawn anew at each step, a pixel of 0.3 being 1 in three of ten draws
    (dynamic binarization); test images are drawn once.

    What to look for. At which β is the test bound highest? Which of the two gaps is
    larger? Which classes share a place in the map?

    What to expect. There is no reference run yet. On digits (quick) the test bound is
    near -24.6 nats with β = 1, -26.2 with 0.1, and -27.3 with 4, which is what no code at
    all gives. Three quarters of the gap are the encoder's.

    Attributes:
        data: mnist, digits, or yours: a folder or a file.npz; mnist@10000 for fewer
            training images. They become gray.
        size: Height and width in pixels to which images are brought.
        code: Numbers in the code. With two there are maps, the evidence and the gaps.
        models: dense, trained at each of betas; linear, beside probabilistic PCA.
        model: Your own network as a further one, trained at β = 1:
            package.module:factory or path/to/file.py:factory. encode(x) takes rows of
            zeros and ones (N, size²) and returns means and logarithms of variances of
            codes, (N, k) each; decode(codes) returns a logit for each pixel, (N, size²).
        hidden: Units of the encoder's layers, from the image to the code.
        decoder: Units of the decoder's layers, from the code to the image; none for a
            mirror of the encoder.
        activation: After each of them.
        betas: Weights of the divergence beside sums over pixels; 1 is the bound.
        mean_betas: Weights of the divergence beside means over pixels.
        warmup: Share of the training during which the weight rises from 0.
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Of Adam; it rises over a tenth of the steps and falls to zero.
        linear_steps: Steps of the linear model, on the covariance of all images.
        draws: Codes k of the importance weighted bounds.
        scored: Test images whose evidence and importance weighted bounds are computed.
    """

    topic: ClassVar[str] = "codes"
    batch_over: ClassVar[tuple[str, ...]] = ("beta", "mistake")

    data: ImagesField = "mnist@10000"
    size: Pixels = 28
    code: Size = 2
    models: Annotated[tuple[Model, ...], Distinct(least=0)] = MODELS
    model: OwnModelField = None
    hidden: tuple[Size, ...] = (256, 128)
    # One layer more than a mirror was worth 1.3 nats on validation images of MNIST for
    # an eighth more time, SiLU instead of ReLU 1.5 nats.
    decoder: tuple[Size, ...] = (128, 128, 256)
    activation: Activation = "silu"
    betas: Annotated[tuple[Beta, ...], Rising(least=0)] = (0.1, 0.5, 1.0, 2.0, 4.0)
    mean_betas: Annotated[tuple[Beta, ...], Rising(least=0)] = (1e-3, 1.0)
    warmup: Annotated[NotNegative, Lt(1)] = 0.0
    epochs: Epochs = 20
    batch_size: Samples = 128
    learning_rate: Positive = 1e-2
    linear_steps: Steps = 1_500
    draws: Annotated[tuple[Draws, ...], Rising()] = (10, 100)
    scored: Samples = 300

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "data": "digits",
            "size": 8,
            "hidden": (64, 32),
            "decoder": (),
            "betas": (0.1, 1.0, 4.0),
            "mean_betas": (1.0,),
            # A twelfth of the images of MNIST; without a warm-up the code is found late.
            "warmup": 0.5,
            "epochs": 50,
            "batch_size": 100,
            "linear_steps": 600,
            "scored": 60,
            "seeds": 7,
        },
        # Fewer seeds cannot decide as many claims.
        "standard": {"seeds": 9},
        "paper": {"data": "mnist", "epochs": 100, "seeds": 9},
        # One weight, trained long enough that a test bound above -138 nats is expected.
        "full": {
            "data": "mnist",
            "models": (DENSE,),
            "betas": (1.0,),
            "mean_betas": (),
            "epochs": 30,
            "seeds": 9,
        },
        # Batch size, number of epochs and learning rate are not known.
        "course-d": {
            "data": "mnist",
            "decoder": (),
            "activation": "relu",
            "betas": (1.0,),
            "mean_betas": (1e-3,),
            "seeds": 9,
        },
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim.at_least(
            "amortization_share",
            0.5,
            where={"model": DENSE, "mistake": NONE, "beta": 1.0},
            smallest_effect=0.05,
            quantity="share of the encoder in the gap between bound and evidence",
            sentence="More than half of what the bound lacks is the encoder's fault, not "
            "that of normal posteriors",
            answer=Answer(
                supported="what the bound lacks is mostly the encoder's fault",
                refuted="what the bound lacks is mostly due to normal posteriors",
                open="whether encoder or normal posteriors cost the bound more",
            ),
        ),
        Claim.at_most(
            "below_probabilistic_pca",
            0.01,
            where={"model": LINEAR},
            quantity="log-likelihood of probabilistic PCA minus the trained bound, nats",
            sentence="The bound of a linear model reaches the log-likelihood of "
            "probabilistic PCA to 0.01 nat",
            answer=Answer(
                supported="the bound itself is not at fault: in a linear model it is "
                "tight",
                refuted="in a linear model the bound was not trained to its optimum",
                open="whether the bound of a linear model is tight",
            ),
        ),
    )
    reported: ClassVar[tuple[Reported, ...]] = tuple(
        Reported(
            who="course D",
            setting="β = 0.001 beside the mean over pixels; whether images were "
            "binarized is not known",
            seeds=1,
            quantity=f"{words} of training images, nats",
            value=value,
            metric=metric,
            where={"model": DENSE, "mistake": MEAN_LOSS, "beta": 0.784},
            fields={"data": "mnist", "size": 28, "code": 2},
        )
        for words, metric, value in (
            ("reconstruction", "train_reconstruction", 131.8),
            ("divergence", "train_divergence", 7.1),
            ("bound", "train_elbo", -138.9),
        )
    )
    exercises: ClassVar[tuple[str, ...]] = (
        "Derive the divergence of a normal distribution from the standard one. What is it "
        "at mean 0 and variance 1, and what at variance 0.01?",
        "Set mean_betas=0.001,0.00128,0.01. Which β beside the sum are these?",
        "Set code=1, 2, 8, 20 with models=dense and betas=1. How many units are active, "
        "and how does the bound grow? Why is there no evidence any more?",
        "Set warmup=0.5. Does it change how many units are active at β = 4?",
        "Train with twice the hidden units. Which of the two gaps shrinks?",
        "Why is a bound of gray pixels, without binarization, not a likelihood at all? "
        "Which value would a pixel of 0.5 have at best?",
    )
    references: ClassVar[tuple[str, ...]] = (
        "Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014, "
        "arXiv:1312.6114.",
        "Burda et al., Importance weighted autoencoders, ICLR 2016, arXiv:1509.00519.",
        "Higgins et al., beta-VAE: learning basic visual concepts with a constrained "
        "variational framework, ICLR 2017.",
        "Cremer et al., Inference suboptimality in variational autoencoders, ICML 2018, "
        "arXiv:1801.03558.",
        "Alemi et al., Fixing a broken ELBO, ICML 2018, arXiv:1711.00464.",
        "Lucas et al., Don't blame the ELBO! A linear VAE perspective on posterior "
        "collapse, NeurIPS 2019, arXiv:1911.02469.",
        "Tipping and Bishop, Probabilistic principal component analysis, Journal of the "
        "Royal Statistical Society B 61, 1999.",
    )

    @property
    def inputs(self) -> int:
        """Pixels of an image."""
        return self.size**2

    def validate(self) -> None:
        """Check that there is something to train, how long codes are, and your network."""
        if self.code >= self.inputs:
            raise UsageError(
                f"code={self.code:,} is no compression: an image of {self.size} x "
                f"{self.size} pixels has {self.inputs:,} numbers. Ask for fewer."
            )
        if not self.conditions():
            raise UsageError(
                "There is nothing to train: name dense with betas or mean_betas, or "
                "linear, in models, or give model."
            )
        if LINEAR in self.models:
            baselines.check_coordinates(self.inputs)
        data.image_task(self.data, size=self.size, channels=1)
        if self.model is not None:
            models.code_size(models.load_factory(self.model)(), self.inputs)

    def conditions(self) -> list[Condition]:
        """List the models with every weight of the divergence, beside sums and means."""
        found = []
        if DENSE in self.models:
            found += [Condition(model=DENSE, beta=b, mistake=NONE) for b in self.betas]
            found += [
                Condition(model=DENSE, beta=self.beside_sum(b), mistake=MEAN_LOSS)
                for b in self.mean_betas
            ]
        if self.model is not None:
            found.append(Condition(model=YOURS, beta=1.0, mistake=NONE))
        if LINEAR in self.models:
            found.append(Condition(model=LINEAR, beta=1.0, mistake=NONE))
        return found

    def beside_sum(self, beta: float) -> float:
        """Return the weight beside sums over pixels that equals one beside means.

        >>> Vae().beside_sum(1e-3)
        0.784
        """
        return round(beta * self.inputs, 12)

    def active_claims(self) -> tuple[Claim, ...]:
        """Return the claims on what is run, and one on each other weight."""
        found = list(super().active_claims())
        if self.code != 2:
            found = [one for one in found if one.metric != "amortization_share"]
        if DENSE not in self.models:
            return tuple(found)
        if 1.0 in self.betas:
            found += [_best_at_one(beta) for beta in self.betas if beta != 1]
        if 1.0 in self.mean_betas:
            found.append(_collapsed(self.beside_sum(1.0)))
        return tuple(found)

    def builder(self, name: str) -> Callable[[], nn.Module]:
        """Return what makes a fresh network for rows of pixels."""
        if name == YOURS:
            return models.load_factory(str(self.model))
        if name == LINEAR:
            return lambda: models.LinearVae(self.inputs, self.code)
        return lambda: models.dense_vae(
            self.inputs,
            self.code,
            hidden=self.hidden,
            decoder=self.decoder or None,
            activation=self.activation,
        )

    def network_of(self, condition: Condition) -> nn.Module:
        """See `Experiment.network_of`."""
        return self.builder(str(condition["model"]))()

    def objective(self, trial: Trial, lab: Seeds) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See `Experiment.objective`; pixels and codes are drawn once."""
        import torch

        from nablab.instruments import Closure

        task = data.image_task(self.data, size=self.size, channels=1)
        shares = _shares(task.train()[0])
        if trial.condition["model"] == LINEAR:
            covariance = baselines.Moments.of(shares).covariance.float()
            loss = Closure(lambda net, batch: linear_loss(net, {"x": batch[0]})["loss"])
            return loss, (covariance[None], torch.zeros(1))
        draw = training.generator(lab.seed(trial, "measured", by=()))
        x = _binarized(shares[:MEASURED], draw)
        net = self.network_of(trial.condition)
        with torch.no_grad():
            noise = torch.randn(net.encode(x)[0].shape, generator=draw)  # type: ignore[operator]
        hyper = self._weights(trial)

        def negative_bound(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
            x, noise = batch
            return weighted_bound(model, x, lambda *_: noise, **hyper)["loss"]

        return Closure(negative_bound, samples=lambda batch: len(batch[0])), (x, noise)

    def _weights(self, trial: Trial) -> dict[str, float]:
        """Return the weight of the divergence, and what a mean over pixels divides by."""
        mean = trial.condition["mistake"] == MEAN_LOSS
        return {
            "beta": float(trial.condition["beta"]),
            "scale": 1 / self.inputs if mean else 1.0,
        }

    def run(self, trials: Trials, lab: Lab) -> None:
        """Train one model, and measure it on test images."""
        task = data.image_task(self.data, size=self.size, channels=1)
        lab.note(*task.notes)
        if trials.condition["model"] == LINEAR:
            self._linear(trials, lab, _shares(task.train()[0]))
            return
        images = _Images.of(task, lab.shared_seed("binarization"))
        result = self._trained(trials, lab, images)
        for trial, outcome in lab.each(zip(trials, result, strict=True)):
            net = outcome.module().cpu().eval()
            lab.curve(trial, "test_elbo", outcome.steps, outcome.curves["test_elbo"])
            lab.record(
                trial,
                parameters=sum(part.numel() for part in net.parameters()),
                stop_reason=outcome.stop_reason,
            )
            self._bounds(trial, lab, net, images)
            self._show(trial, lab, net, images)

    def _trained(self, trials: Trials, lab: Lab, images: _Images) -> training.Training:
        """Train all weights of the divergence and all seeds in one call."""
        steps = self.epochs * -(-len(images.train) // self.batch_size)
        hyper = [self._weights(trial) for trial in trials]
        return lab.train(
            training.Minimize(
                self.builder(str(trials.condition["model"])),
                NegativeElbo(int(self.warmup * steps)),
            ),
            {"x": images.train},
            training.Recipe(
                epochs=self.epochs,
                batch_size=self.batch_size,
                optimizer=training.Adam(learning_rate=self.learning_rate),
                schedule=training.Linear(warmup_steps=steps // 10),
                hyper={name: [own[name] for own in hyper] for name in hyper[0]},
                train_samples=0,
                held_out={"test": training.Arrays(x=images.test[:AT_ONCE])},
                eval_every=max(1, steps // CURVE),
                best="test_loss",
            ),
            # The same weights and batches at every weight of the divergence.
            seeds=[lab.seed(trial, "weights", by=("model",)) for trial in trials],
        )

    def _bounds(self, trial: Trial, lab: Lab, net: Any, images: _Images) -> None:
        """Record bounds of training and test images, and what lies above them."""
        import torch

        draw = training.generator(lab.seed(trial, "bounds", by=()))
        for split, x in (("test", images.test), ("train", images.seen)):
            elbo, divergence = _elbo(net, x, draw)
            lab.record(
                trial,
                **{
                    f"{split}_elbo": elbo,
                    f"{split}_divergence": divergence,
                    f"{split}_reconstruction": -elbo - divergence,
                },
            )
        with torch.no_grad():
            means = torch.cat(
                [net.encode(x)[0] for x in torch.split(images.test, AT_ONCE)]
            )
        active = metrics.active_units(means)
        collapsed = means.shape[1] - active
        lab.record(
            trial,
            active_units=active,
            collapse=f"{collapsed} of {means.shape[1]} units" if collapsed else "none",
            without_code=images.without_code,
        )
        x = images.test[: self.scored]
        for draws in self.draws:
            bound = metrics.importance_weighted_bound(
                net, x, metrics.Bernoulli(), draws=draws, generator=draw
            )
            lab.record(trial, **{f"iwae_{draws}": float(bound.mean())})
        if means.shape[1] == 2:
            self._gaps(trial, lab, net, x)

    def _gaps(self, trial: Trial, lab: Lab, net: Any, x: Tensor) -> None:
        """Record the evidence, and the two parts of the gap below it."""
        found = metrics.inference_gaps(net, x, metrics.Bernoulli())
        gap = float((found.quadrature.values - found.bound).mean())
        amortization = float(found.amortization.mean())
        lab.record(
            trial,
            log_likelihood=float(found.quadrature.values.mean()),
            scored_elbo=float(found.bound.mean()),
            gap=gap,
            approximation_gap=float(found.approximation.mean()),
            amortization_gap=amortization,
            # A collapsed model has no gap, and nothing to share.
            amortization_share=amortization / gap if gap > CLOSE else float("nan"),
            quadrature_change=found.quadrature.change,
            quadrature_at_border=found.quadrature.at_border,
        )
        rough = found.quadrature.change > metrics.ROUGH
        if rough or found.quadrature.at_border > CLOSE:
            lab.note(
                f"The evidence of some test image at {trial.condition} is not exact: a "
                f"grid twice as coarse changes it by {found.quadrature.change:.2g} nats, "
                f"and {found.quadrature.at_border:.2g} of it lies at the grid's border."
            )

    def _show(self, trial: Trial, lab: Lab, net: Any, images: _Images) -> None:
        """Keep codes by class, a grid of samples, and ways between test images."""
        import torch

        shape = (len(images.test[:SHOWN]), BETWEEN, 1, self.size, self.size)
        with torch.no_grad():
            codes = net.encode(images.test[:AT_ONCE])[0]
            first, second = codes[:SHOWN], codes[SHOWN : 2 * SHOWN]
            ways = torch.linspace(0, 1, BETWEEN)[:, None]
            between = first[:, None] + ways * (second - first)[:, None]
            chances = net.decode(between.flatten(0, 1)).sigmoid()
            lab.array(trial, "ways", _gray(chances).reshape(shape).numpy())
            if codes.shape[1] != 2:
                return
            chances = net.decode(_quantiles(SIDE)).sigmoid()
        lab.array(trial, "codes", codes.numpy())
        lab.array(trial, "labels", images.labels[:AT_ONCE].numpy())
        lab.array(trial, "class_names", _letters(images.classes))
        grid = _gray(chances).reshape(SIDE, SIDE, 1, self.size, self.size)
        lab.array(trial, "samples", grid.numpy())

    def _linear(self, trials: Trials, lab: Lab, shares: Tensor) -> None:
        """Train a linear model on the covariance, and hold it against the closed form."""
        moments = baselines.Moments.of(shares)
        pca = baselines.probabilistic_pca(
            baselines.principal_components(moments, self.code)
        )
        result = lab.train(
            training.Minimize(self.builder(LINEAR), linear_loss),
            {"x": moments.covariance.float()[None]},
            training.Recipe(
                steps=self.linear_steps,
                optimizer=training.Adam(learning_rate=LINEAR_RATE),
                schedule=training.Linear(warmup_steps=self.linear_steps // 10),
                eval_every=max(1, self.linear_steps // CURVE),
            ),
            seeds=[lab.seed(trial, "weights", by=("model",)) for trial in trials],
        )
        for trial, outcome in zip(trials, result, strict=True):
            net: Any = outcome.module().cpu().double().requires_grad_(False)
            bound = -float(linear_loss(net, {"x": moments.covariance[None]})["loss"])
            below = [pca.log_likelihood + loss for loss in outcome.curves["train_loss"]]
            lab.curve(trial, "below_probabilistic_pca", outcome.steps, below)
            lab.record(
                trial,
                linear_elbo=bound,
                probabilistic_pca=pca.log_likelihood,
                below_probabilistic_pca=pca.log_likelihood - bound,
                noise_variance=float(net.log_noise.exp()),
                noise_of_pca=pca.variance,
                stop_reason=outcome.stop_reason,
            )

    def baselines(self, records: Records) -> dict[str, Mapping[str, float]]:
        """Give every pixel the frequency that it has in training, without any code."""
        found = records.values("without_code")
        return {"test_elbo": {"no code": found[0]}} if found else {}

    def figures(self, records: Records) -> dict[str, Figure]:
        """Draw bounds and gaps by weight, codes, samples, ways, and training."""
        figures: dict[str, Figure] = {}
        coded = Records(r for r in records if r.condition["model"] != LINEAR)
        swept = coded.where(model=DENSE, mistake=NONE)
        first = {_said(r.condition): r for r in reversed(coded) if "codes" in r.arrays}
        if first:
            figures |= self._of_plane(dict(reversed(first.items())))
        if swept:
            figures |= self._by_weight(swept)
        figures |= _ways(coded)
        if coded:
            figures["learning"] = plots.curves(
                _named(coded),
                "test_elbo",
                color_by="weight",
                panel_by="",
                log_y=False,
                y_label="test ELBO (nats)",
                title="The bound of test images during training",
                caption="The bound with β = 1, whatever was trained.",
            )
        return figures | _linear_figure(records)

    def _of_plane(self, first: Mapping[str, Record]) -> dict[str, Figure]:
        """Draw the plane of codes of one seed: test images on it, and what it decodes."""
        return {
            "map": plots.code_maps(
                {
                    name: plots.CodeMap(
                        record.arrays["codes"],
                        record.arrays["labels"],
                        tuple(bytes(record.arrays["class_names"]).decode().split("\n")),
                    )
                    for name, record in first.items()
                },
                title="Where test images lie in the plane of codes",
                caption="The encoder never saw a class. The smaller β is, the farther "
                "the codes spread.",
            ),
            "samples": plots.image_grids(
                {name: record.arrays["samples"] for name, record in first.items()},
                title="What codes become",
                caption="Codes at the quantiles of the standard normal distribution, so "
                "that every picture stands for an equal share of what the model draws.",
            ),
        }

    def _by_weight(self, swept: Records) -> dict[str, Figure]:
        """Draw what depends on the weight of the divergence."""
        figures = {
            "rate-distortion": plots.trend(
                swept,
                {
                    "nats": ["test_reconstruction", "test_divergence"],
                    "test ELBO (nats)": ["test_elbo"],
                },
                x="beta",
                log_y=False,
                names={
                    "test_reconstruction": "distortion: what the pixels cost",
                    "test_divergence": "rate: what the code costs",
                    "test_elbo": "minus their sum: the ELBO",
                },
                x_label="weight β of the divergence",
                title="Rate and distortion of test images",
                caption="Bits for the code or bits for the pixels: β says what a nat of "
                "the one is worth in nats of the other.",
            )
        }
        if any("log_likelihood" in record.scalars for record in swept):
            names = {
                "log_likelihood": "log p(x), by quadrature",
                **{f"iwae_{k}": f"IWAE, {k:,} codes" for k in reversed(self.draws)},
                "scored_elbo": "ELBO",
            }
            figures["bounds"] = plots.trend(
                swept,
                {
                    "nats": list(names),
                    "nats below log p(x)": ["amortization_gap", "approximation_gap"],
                },
                x="beta",
                log_y=False,
                names={
                    **names,
                    "amortization_gap": "amortization gap",
                    "approximation_gap": "approximation gap",
                },
                x_label="weight β of the divergence",
                title=f"Evidence, bounds, and the gap of {self.scored:,} test images",
                caption="Approximation gap: no normal distribution is the posterior. "
                "Amortization gap: the encoder does not give the best one.",
            )
        return figures


@dataclass(frozen=True)
class NegativeElbo:
    """The weighted bound of a batch, as `nablab.training.Minimize` takes it.

    Pixels and codes are drawn anew at each step.

    Attributes:
        warmup_steps: Steps in which the weight of the divergence rises from 0.
    """

    warmup_steps: int = 0

    def __call__(
        self, net: Any, batch: Mapping[str, Tensor], moment: Moment
    ) -> dict[str, Tensor]:
        """Compute means over the samples, in nats."""
        shares = batch["x"]
        # Zeros and ones stay what they are.
        x = (moment.uniform(*shares.shape) < shares).to(shares.dtype)
        risen = 1.0
        if self.warmup_steps:
            risen = min(1.0, (moment.step + 1) / self.warmup_steps)
        beta, scale = moment.hyper["beta"] * risen, moment.hyper["scale"]
        return weighted_bound(net, x, moment.normal, beta=beta, scale=scale)


def weighted_bound(
    net: Any, x: Tensor, normal: Callable[..., Tensor], *, beta: Any, scale: Any
) -> dict[str, Tensor]:
    """Compute the loss ``scale * (reconstruction + beta * divergence)`` and its parts.

    Args:
        net: The model.
        x: Zeros and ones (N, pixels).
        normal: Gives standard normal values of a shape.
        beta: Weight of the divergence.
        scale: 1 for sums over pixels, one over their number for means.
    """
    mean, log_variance = net.encode(x)
    codes = mean + (log_variance / 2).exp() * normal(*mean.shape)
    reconstruction = -metrics.Bernoulli().log_of(net.decode(codes), x).mean()
    divergence = metrics.divergence(mean, log_variance).mean()
    return {
        "loss": scale * (reconstruction + beta * divergence),
        "elbo": -reconstruction - divergence,
        "divergence": divergence,
    }


def linear_loss(
    net: Any, batch: Mapping[str, Tensor], moment: Moment | None = None
) -> dict[str, Tensor]:
    """Return the negative bound of a linear model, of the samples' covariance."""
    bound = metrics.linear_evidence_lower_bound(
        net.encoder.weight,
        net.decoder.weight,
        net.log_variance,
        net.log_noise[0],
        batch["x"][0],
    )
    return {"loss": -bound}


@dataclass(frozen=True, eq=False)
class _Images:
    """Images as rows of pixels.

    Attributes:
        train: Shares of ink, float32 (N, pixels).
        seen: Up to 10,000 of them, drawn once as zeros and ones.
        test: Test images, drawn once as zeros and ones.
        labels: Of the test images.
        classes: Their names.
        without_code: Mean log-likelihood of test images where each pixel has the
            frequency that it has in training, in nats.
    """

    train: Tensor
    seen: Tensor
    test: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    without_code: float

    @classmethod
    def of(cls, task: Any, seed: int) -> _Images:
        """Read images, and draw those that are measured."""
        train = _shares(task.train()[0])
        test, labels = task.held_out()
        draw = training.generator(seed)
        drawn = _binarized(_shares(test), draw)
        # A frequency of 0 would make one dot of ink impossible.
        frequencies = ((train.double().sum(0) + 0.5) / (len(train) + 1)).float()
        logits = frequencies.logit()
        return cls(
            train=train,
            seen=_binarized(train[:MOST_SEEN], draw),
            test=drawn,
            labels=labels,
            classes=task.images().classes,
            without_code=float(metrics.Bernoulli().log_of(logits, drawn).mean()),
        )


def _shares(images: Tensor) -> Tensor:
    """Turn uint8 images (N, C, H, W) to rows of shares of ink, float32."""
    return images.flatten(1).float() / 255


def _binarized(shares: Tensor, draw: Any) -> Tensor:
    """Draw each pixel as 1 with its share as the chance."""
    import torch

    return (torch.rand(shares.shape, generator=draw) < shares).float()


def _elbo(net: Any, x: Tensor, draw: Any) -> tuple[float, float]:
    """Return the means of bound and divergence over samples (N, pixels), in nats."""
    import torch

    bound = divergence = 0.0
    for part in torch.split(x, AT_ONCE):
        found = metrics.evidence_lower_bound(
            net, part, metrics.Bernoulli(), draws=DRAWS, generator=draw
        )
        bound += float(found.sum())
        with torch.no_grad():
            divergence += float(metrics.divergence(*net.encode(part)).double().sum())
    return bound / len(x), divergence / len(x)


def _quantiles(side: int) -> Tensor:
    """Return codes (side², 2) at the quantiles of the normal distribution, top left first.

    Each stands for an equal share of its mass.
    """
    import torch

    shares = (torch.arange(side) + 0.5) / side
    axis = torch.special.ndtri(shares)
    down, across = torch.meshgrid(-axis, axis, indexing="ij")
    return torch.stack([across, down], dim=-1).flatten(0, 1)


def _gray(chances: Tensor) -> Tensor:
    return (chances * 255).round().byte()


def _letters(names: Sequence[str]) -> Any:
    """Store names as an array of bytes, a line each."""
    import numpy as np

    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8)


def _said(condition: Condition) -> str:
    """Name a condition in words that a legend can hold."""
    if condition["model"] in (LINEAR, YOURS):
        return str(condition["model"])
    beta = f"β = {condition['beta']:g}"
    return f"mean loss, {beta}" if condition["mistake"] == MEAN_LOSS else beta


def _named(records: Iterable[Record]) -> Records:
    return Records(
        replace(record, condition=Condition(weight=_said(record.condition)))
        for record in records
    )


def _ways(records: Records) -> dict[str, Figure]:
    """Show straight lines between the codes of test images, decoded on the way."""
    found = records.where(beta=1.0, mistake=NONE) or records
    for record in found:
        if "ways" in record.arrays:
            ways = record.arrays["ways"]
            rows: dict[Level, list[tuple[Any, str]]] = {
                f"way {number + 1}": [(image, "") for image in way]
                for number, way in enumerate(ways)
            }
            return {
                "ways": plots.image_rows(
                    rows,
                    title="From one test image to another",
                    caption="Decoded on a straight line between both codes "
                    f"({_said(record.condition)}).",
                )
            }
    return {}


def _linear_figure(records: Records) -> dict[str, Figure]:
    linear = records.where(model=LINEAR)
    if not linear:
        return {}
    return {
        "linear": plots.curves(
            linear,
            "below_probabilistic_pca",
            color_by="model",
            panel_by="",
            y_label="nats below probabilistic PCA",
            title="A linear VAE reaches probabilistic PCA",
            caption="The bound is tight at the optimum.",
        )
    }


def _best_at_one(beta: float) -> Claim:
    """Claim that the test bound is lower at this weight than at 1."""
    return Claim.greater(
        "test_elbo",
        1.0,
        beta,
        by="beta",
        where={"model": DENSE, "mistake": NONE},
        paired=True,
        smallest_effect=0.1,
        quantity="bound of test images, in nats",
        sentence=f"Trained with β = 1 the test bound is higher than with β = {beta:g}",
    )


def _collapsed(beta: float) -> Claim:
    """Claim that at this weight, which is 1 beside means, no unit is active."""
    return Claim.at_most(
        "active_units",
        0.5,
        where={"model": DENSE, "mistake": MEAN_LOSS, "beta": beta},
        quantity="units of the code that differ between images",
        sentence="With β = 1 beside the mean over pixels every unit of the code collapses",
        answer=Answer(
            supported="the code holds nothing if the divergence stands beside a mean "
            "over pixels with β = 1",
            refuted="the code holds something even if the divergence stands beside a "
            "mean over pixels with β = 1",
            open="whether the code holds anything if the divergence stands beside a "
            "mean over pixels with β = 1",
        ),
    )
