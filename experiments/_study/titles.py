"""Titles of the problems on a page, and their order."""

# As in the publication, then equations, then problems of our own; others after these.
_TITLES = {
    "nonlinear_oscillators": "Nonlinear oscillators",
    "poisson": "Poisson",
    "quantum_dipole": "Quantum dipole",
    "conditioning_toy": "Conditioning toy",
    "pinn/burgers": "Physics-informed network: Burgers",
    "pinn/schroedinger": "Physics-informed network: Schrödinger",
    "pinn/kovasznay": "Physics-informed network: Kovasznay",
    "pinn/beltrami": "Physics-informed network: Beltrami",
    "cart_pole": "Cart-pole",
    "burgers_control": "Control of Burgers' equation",
    "reaction_diffusion": "Control of a reaction with diffusion",
    "smoke_control": "Smoke control",
}
_PLACES = {folder: place for place, folder in enumerate(_TITLES)}


def title(folder: str) -> str:
    """Title of a problem, by the folder of its submit scripts; the folder if it has none."""
    return _TITLES.get(folder, folder)


def place(folder: str) -> tuple[int, str]:
    """The key that sorts problems as on the page; those without a title last, by name."""
    return _PLACES.get(folder, len(_PLACES)), folder
