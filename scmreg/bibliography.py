"""The literature that components refer to, as BibTeX.

A component's ``reference`` names papers in words, one after each semicolon: ``Geng et al. 2024 (ECT),
arXiv:2406.14548, Eq. 16``. Here every paper has one entry, found by its identifier or by how it is named where the
identifier is left out.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

import scmreg
from scmreg.component import Component

__all__ = ["ENTRIES", "Entry", "resolve", "software"]


@dataclass(frozen=True)
class Entry:
    """One work of the literature."""

    key: str
    """BibTeX key."""
    authors: str
    title: str
    year: int
    names: tuple[str, ...] = ()
    """What references call it, up to the first comma, where they leave out the identifier."""
    arxiv: str = ""
    doi: str = ""
    venue: dict[str, str] = field(default_factory=dict)
    """Further BibTeX fields: where it was published."""

    @property
    def identifiers(self) -> tuple[str, ...]:
        """What a reference calls it by: ``arXiv:...`` and ``doi:...``."""
        return tuple(f"{scheme}:{value}" for scheme, value in (("arXiv", self.arxiv), ("doi", self.doi)) if value)

    def bibtex(self) -> str:
        """Return the entry as BibTeX."""
        kind = {"booktitle": "inproceedings", "journal": "article", "publisher": "book"}
        where = next((kind[name] for name in self.venue if name in kind), "misc")
        fields = {"title": f"{{{self.title}}}", "author": self.authors, "year": str(self.year), **self.venue}
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv"}
        if self.doi:
            fields["doi"] = self.doi
        return _written(where, self.key, fields)


def _written(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join((f"@{kind}{{{key},", *lines, "}"))


def software() -> str:
    """Return the entry of this library."""
    fields = {
        "title": "{scmreg: a registry of checked, swappable components for few-step generative models}",
        "author": "{The scmreg authors}",
        "note": f"Version {scmreg.__version__}",
    }
    return _written("misc", "scmreg", fields)


def _in(booktitle: str) -> dict[str, str]:
    return {"booktitle": booktitle}


NEURIPS = "Advances in Neural Information Processing Systems"
ICLR, ICML = "International Conference on Learning Representations", "International Conference on Machine Learning"
CVPR = "IEEE/CVF Conference on Computer Vision and Pattern Recognition"
ICCV = "IEEE/CVF International Conference on Computer Vision"

ENTRIES = (
    Entry(
        "alpaydin1998digits",
        "Alpaydin, Ethem and Kaynak, Cenk",
        "Optical Recognition of Handwritten Digits",
        1998,
        names=("Alpaydin & Kaynak 1998",),
        doi="10.24432/C50P49",
        venue={"howpublished": "UCI Machine Learning Repository"},
    ),
    Entry(
        "bonneel2015sliced",
        r"Bonneel, Nicolas and Rabin, Julien and Peyr{\'e}, Gabriel and Pfister, Hanspeter",
        "Sliced and Radon Wasserstein Barycenters of Measures",
        2015,
        doi="10.1007/s10851-014-0506-3",
        venue={"journal": "Journal of Mathematical Imaging and Vision", "volume": "51", "number": "1"},
    ),
    Entry(
        "crowson2024hdit",
        "Crowson, Katherine and Baumann, Stefan Andreas and Birch, Alex and Abraham, Tanishq Mathew and"
        " Kaplan, Daniel Z. and Shippole, Enrico",
        "Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers",
        2024,
        arxiv="2401.11605",
        venue=_in(ICML),
    ),
    Entry(
        "dao2023flashattention2",
        "Dao, Tri",
        "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
        2023,
        arxiv="2307.08691",
    ),
    Entry(
        "esser2024sd3",
        "Esser, Patrick and Kulal, Sumith and Blattmann, Andreas and Entezari, Rahim and others",
        "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
        2024,
        arxiv="2403.03206",
        venue=_in(ICML),
    ),
    Entry(
        "geng2024ect",
        "Geng, Zhengyang and Pokle, Ashwini and Luo, William and Lin, Justin and Kolter, J. Zico",
        "Consistency Models Made Easy",
        2024,
        names=("Geng et al. 2024 (ECT)", "ECT"),
        arxiv="2406.14548",
    ),
    Entry(
        "hang2023minsnr",
        "Hang, Tiankai and Gu, Shuyang and Li, Chen and Bao, Jianmin and Chen, Dong and Hu, Han and Geng, Xin and"
        " Guo, Baining",
        "Efficient Diffusion Training via Min-SNR Weighting Strategy",
        2023,
        arxiv="2303.09556",
        venue=_in(ICCV),
    ),
    Entry(
        "heek2024multistep",
        "Heek, Jonathan and Hoogeboom, Emiel and Salimans, Tim",
        "Multistep Consistency Models",
        2024,
        arxiv="2403.06807",
    ),
    Entry(
        "heusel2017ttur",
        "Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard and Hochreiter, Sepp",
        "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
        2017,
        arxiv="1706.08500",
        venue=_in(NEURIPS),
    ),
    Entry(
        "ho2020ddpm",
        "Ho, Jonathan and Jain, Ajay and Abbeel, Pieter",
        "Denoising Diffusion Probabilistic Models",
        2020,
        arxiv="2006.11239",
        venue=_in(NEURIPS),
    ),
    Entry(
        "karras2022edm",
        "Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli",
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022,
        names=("Karras et al. 2022", "Karras et al. 2022 (EDM)"),
        arxiv="2206.00364",
        venue=_in(NEURIPS),
    ),
    Entry(
        "karras2024edm2",
        "Karras, Tero and Aittala, Miika and Lehtinen, Jaakko and Hellsten, Janne and Aila, Timo and Laine, Samuli",
        "Analyzing and Improving the Training Dynamics of Diffusion Models",
        2024,
        arxiv="2312.02696",
        venue=_in(CVPR),
    ),
    Entry(
        "kynkaanniemi2019precision",
        r"Kynk{\"a}{\"a}nniemi, Tuomas and Karras, Tero and Laine, Samuli and Lehtinen, Jaakko and Aila, Timo",
        "Improved Precision and Recall Metric for Assessing Generative Models",
        2019,
        arxiv="1904.06991",
        venue=_in(NEURIPS),
    ),
    Entry(
        "lipman2023flow",
        "Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matt",
        "Flow Matching for Generative Modeling",
        2023,
        arxiv="2210.02747",
        venue=_in(ICLR),
    ),
    Entry(
        "lu2022dpmsolver",
        "Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun",
        "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps",
        2022,
        arxiv="2206.00927",
        venue=_in(NEURIPS),
    ),
    Entry(
        "lu2022dpmsolverpp",
        "Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun",
        "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        2022,
        arxiv="2211.01095",
    ),
    Entry(
        "lu2024scm",
        "Lu, Cheng and Song, Yang",
        "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
        2024,
        names=("Lu & Song 2024 (sCM)",),
        arxiv="2410.11081",
    ),
    Entry(
        "marsland2009machine",
        "Marsland, Stephen",
        "Machine Learning: An Algorithmic Perspective",
        2009,
        names=("Marsland 2009",),
        venue={"publisher": "Chapman and Hall/CRC"},
    ),
    Entry(
        "nichol2021improved",
        "Nichol, Alex and Dhariwal, Prafulla",
        "Improved Denoising Diffusion Probabilistic Models",
        2021,
        arxiv="2102.09672",
        venue=_in(ICML),
    ),
    Entry(
        "peebles2023dit",
        "Peebles, William and Xie, Saining",
        "Scalable Diffusion Models with Transformers",
        2023,
        arxiv="2212.09748",
        venue=_in(ICCV),
    ),
    Entry(
        "rabe2021selfattention",
        "Rabe, Markus N. and Staats, Charles",
        r"Self-attention Does Not Need $O(n^2)$ Memory",
        2021,
        arxiv="2112.05682",
    ),
    Entry(
        "salimans2022progressive",
        "Salimans, Tim and Ho, Jonathan",
        "Progressive Distillation for Fast Sampling of Diffusion Models",
        2022,
        arxiv="2202.00512",
        venue=_in(ICLR),
    ),
    Entry(
        "song2021ddim",
        "Song, Jiaming and Meng, Chenlin and Ermon, Stefano",
        "Denoising Diffusion Implicit Models",
        2021,
        arxiv="2010.02502",
        venue=_in(ICLR),
    ),
    Entry(
        "song2021score",
        "Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano and"
        " Poole, Ben",
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        2021,
        arxiv="2011.13456",
        venue=_in(ICLR),
    ),
    Entry(
        "song2023consistency",
        "Song, Yang and Dhariwal, Prafulla and Chen, Mark and Sutskever, Ilya",
        "Consistency Models",
        2023,
        arxiv="2303.01469",
        venue=_in(ICML),
    ),
    Entry(
        "song2023ict",
        "Song, Yang and Dhariwal, Prafulla",
        "Improved Techniques for Training Consistency Models",
        2023,
        arxiv="2310.14189",
    ),
    Entry(
        "wang2023prolificdreamer",
        "Wang, Zhengyi and Lu, Cheng and Wang, Yikai and Bao, Fan and Li, Chongxuan and Su, Hang and Zhu, Jun",
        "ProlificDreamer: High-Fidelity and Diverse Text-to-3D Generation with Variational Score Distillation",
        2023,
        arxiv="2305.16213",
        venue=_in(NEURIPS),
    ),
    Entry(
        "yin2024dmd",
        r"Yin, Tianwei and Gharbi, Micha{\"e}l and Zhang, Richard and Shechtman, Eli and Durand, Fr{\'e}do and"
        " Freeman, William T. and Park, Taesung",
        "One-step Diffusion with Distribution Matching Distillation",
        2024,
        arxiv="2311.18828",
        venue=_in(CVPR),
    ),
    Entry(
        "zhang2018lpips",
        "Zhang, Richard and Isola, Phillip and Efros, Alexei A. and Shechtman, Eli and Wang, Oliver",
        "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        2018,
        arxiv="1801.03924",
        venue=_in(CVPR),
    ),
)

_BY_IDENTIFIER = {identifier.lower(): entry for entry in ENTRIES for identifier in entry.identifiers}
_IDENTIFIER = re.compile(r"(?:arXiv:\d{4}\.\d{4,5})|(?:doi:10\.[^\s,;]+)", re.IGNORECASE)
_OWN = re.compile(r"^\s*@\w+\s*\{\s*([^,\s]+)\s*,", re.MULTILINE)


def resolve(component: type[Component]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the BibTeX entries of a component's reference by their keys, and the parts of it that have none.

    A component that brings entries of its own (``bibtex``) answers for the whole of its reference: what is not among
    those known here is taken to be among its own.
    """
    found = {}
    without = []
    for part in filter(None, (part.strip() for part in component.reference.split(";"))):
        entries, complete = _named(part)
        found.update({entry.key: entry.bibtex() for entry in entries})
        if not complete:
            without.append(part)
    if component.bibtex:
        found.update(split(component.bibtex))
        without = []
    return found, tuple(without)


def _named(part: str) -> tuple[list[Entry], bool]:
    """Return the entries that a part of a reference names, and whether these are all."""
    identifiers = [found.rstrip(".").lower() for found in _IDENTIFIER.findall(part)]
    if identifiers:
        known = [_BY_IDENTIFIER[identifier] for identifier in identifiers if identifier in _BY_IDENTIFIER]
        return known, len(known) == len(identifiers)
    named = [entry for entry in ENTRIES if part.partition(",")[0] in entry.names]
    return named, bool(named)


def split(bibtex: str) -> dict[str, str]:
    """Return the entries of a BibTeX text by their keys.

    Raises:
        ValueError: if it has none.
    """
    bibtex = inspect.cleandoc(bibtex)
    starts = [(found.start(), found[1]) for found in _OWN.finditer(bibtex)]
    if not starts:
        raise ValueError(f"no BibTeX entry in {bibtex!r}")
    ends = [start for start, _ in starts[1:]] + [len(bibtex)]
    return {key: bibtex[start:end].strip() for (start, key), end in zip(starts, ends, strict=True)}
