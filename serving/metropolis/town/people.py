"""The people of the town: a name and one line about each."""

from typing import NamedTuple


class Person(NamedTuple):
    """A resident's name and description; the description goes into every prompt."""

    name: str
    about: str


PEOPLE = tuple(
    Person(*line.split(": ", 1))
    for line in (
        "Ada: keeps the library, curious about everyone's childhood",
        "Ben: bakes for the café, rises early, hums while he works",
        "Cleo: paints the pond in every weather, forgets the time",
        "Dario: repairs bicycles and clocks, distrusts hurry",
        "Edda: teaches mathematics, plays chess in the park",
        "Finn: sells vegetables, knows all the gossip of the market",
        "Gwen: retired captain, walks three rounds of the park a day",
        "Hugo: writes a novel that nobody has read yet",
        "Iris: studies birds, carries a notebook",
        "Jon: carpenter, building a boat in the workshop",
        "Kai: student, looking for an idea for a science project",
        "Lea: plans the summer fair, asks everyone for help",
        "Milo: cooks, wants to open a second café",
        "Nora: nurse, worries about the pond's water",
        "Otto: collects old maps of the town",
        "Pia: plays the cello, practises where there is an echo",
        "Quinn: new in town, lives for good coffee",
        "Rosa: grows roses, sells them at the market",
        "Sam: runs, times everything",
        "Tess: photographs doors",
        "Uma: runs the school garden",
        "Vic: tells stories to children",
        "Wren: fixes radios, listens to ships",
        "Xeno: philosopher, argues for fun",
        "Yara: mayor, counts votes and friends",
    )
)
