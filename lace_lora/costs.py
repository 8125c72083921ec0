"""What minutes on a machine cost, by the price lists in plan_data/machines.yaml; a price is always as of their date."""

from dataclasses import dataclass

from lace_lora import throughput

LEAST_USD = 0.005  # less is no sum that a person reckons with
RENTED = "a rented one"


@dataclass(frozen=True)
class Price:
    """What one offer takes for some minutes: dollars, and Colab's compute units where it is Colab."""

    offer: str
    usd: float
    assumption: str  # minutes × rate, as it was worked out

    def __str__(self) -> str:
        """Few words: free on Colab, or about so many dollars on an offer."""
        if not self.usd:
            return f"free on {self.offer}"
        return f"{'' if self.usd < LEAST_USD else 'about '}{money(self.usd)} on {self.offer}"


def of(gpu: str | None, minutes: float, gpus: int = 1) -> tuple[Price, ...]:
    """What the offers take that have this GPU, the cheapest first; each GPU costs its price as long as all are held.

    gpu   a name of throughput's table; None for a CPU
    gpus  of the machine; more than one are not Colab's
    """
    rates, hours = throughput.table(), minutes / 60
    if gpu is None:
        return (_replicate("cpu", minutes),)
    found, each = [], f"{gpus} × " if gpus > 1 else ""
    if gpu in rates["colab_units_an_hour"] and gpus == 1:
        units, unit_usd = rates["colab_units_an_hour"][gpu], rates["colab_unit_usd"]
        is_free = gpu in rates["colab_free"]
        told = f"{hours:.1f} h × {units} compute units × ${unit_usd:.2f}"
        found.append(Price("Colab", 0.0, "where a free one is given") if is_free
                     else Price("Colab", hours * units * unit_usd, told))  # fmt: skip
    if gpu in rates["rented_usd_an_hour"]:
        rate = rates["rented_usd_an_hour"][gpu]
        found.append(Price(RENTED, gpus * hours * rate, f"{each}{hours:.1f} h × ${rate:.2f}"))
    if gpu in rates["replicate_usd_a_second"]:
        found.append(_replicate(gpu, minutes, gpus))
    return tuple(sorted(found, key=lambda price: price.usd))


def as_of() -> str:
    """The day of the price lists, and whose they are."""
    return f"prices of {throughput.table()['prices_as_of']}"


def money(usd: float) -> str:
    """Dollars with as many digits as a person needs."""
    return "under $0.01" if usd < LEAST_USD else f"${usd:.2f}" if usd < 10 else f"${usd:.0f}"


def _replicate(name: str, minutes: float, gpus: int = 1) -> Price:
    rate, each = throughput.table()["replicate_usd_a_second"][name], f"{gpus} × " if gpus > 1 else ""
    return Price("Replicate", gpus * 60 * minutes * rate, f"{each}{60 * minutes:.0f} s × ${rate:g}")
