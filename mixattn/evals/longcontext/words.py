"""Words and sentences that tasks are made of."""

NOUNS = (
    *("anchor", "basket", "candle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket"),
    *("kettle", "ladder", "market", "needle", "orange", "pencil", "quarry", "ribbon", "saddle", "temple"),
    *("violin", "window", "yogurt", "zipper", "bridge", "carpet", "dragon", "elbow", "feather", "glacier"),
    *("harbor", "insect", "jungle", "kitten", "lantern", "mirror", "napkin", "oyster", "pillow", "rabbit"),
    *("shovel", "ticket", "valley", "walnut", "beacon", "cotton", "dinner", "estate", "fabric", "goblet"),
    *("helmet", "ivory", "jewel", "kernel", "lemon", "meadow", "nectar", "onion", "parcel", "quilt"),
    *("rocket", "silver", "thread", "urchin", "velvet", "wagon", "barrel", "copper", "dolphin", "ember"),
    *("falcon", "gravel", "honey", "icicle", "kiosk", "lobster", "magnet", "nutmeg", "otter", "pepper"),
    *("raven", "spider", "tunnel", "umbrella", "vessel", "whistle", "acorn", "bottle", "cradle", "donkey"),
)
ADJECTIVES = (
    *("amber", "brave", "calm", "dusty", "eager", "faint", "gentle", "hollow", "idle", "jolly"),
    *("keen", "lively", "modest", "narrow", "old", "pale", "quiet", "rapid", "sharp", "tidy"),
    *("urban", "vivid", "warm", "young", "bitter", "clever", "dark", "early", "frozen", "grand"),
)
TOWNS = (
    *(
        "Aldermoor",
        "Brinwick",
        "Carsholt",
        "Dunmere",
        "Elmsford",
        "Farrow",
        "Glenhaven",
        "Hartley",
        "Ironbridge",
    ),
    *(
        "Kestrel",
        "Larkhill",
        "Merriton",
        "Northgate",
        "Oakhurst",
        "Pendle",
        "Quarley",
        "Redmarsh",
        "Stonebrook",
    ),
    *("Thornbury", "Upwell", "Verwood", "Westerby", "Yarmley", "Ashcombe", "Bellhaven", "Crowfield"),
)
PEOPLE = (
    *("Ada Winslow", "Ben Hartog", "Clara Voss", "David Imrie", "Elsa Brandt", "Felix Moreau", "Greta Lind"),
    *("Hugo Prentice", "Ines Calder", "Jonas Reed", "Karin Holm", "Leo Fabian", "Mara Quill", "Nils Aaker"),
    *("Olga Fenn", "Paul Ostrom", "Rita Sandoval", "Simon Dray", "Tessa Merrow", "Viktor Hale"),
)
FILLER = (
    "The road to the mill runs along the river and turns north behind the church.",
    "In autumn the leaves lie so deep in the lane that nobody hears a cart pass.",
    "Bread is baked before sunrise, and the smell of it reaches the upper houses first.",
    "A dog slept on the steps of the post office until the rain began.",
    "Two boats were tied to the pier, and both of them needed paint.",
    "The clock in the square is a few minutes slow, as everybody knows.",
    "Children were playing with a hoop while their teacher read a letter.",
    "There was snow on the hills, although the fields were already green.",
    "Somebody had left a bicycle against the wall of the library.",
    "The market closes early when the wind comes from the sea.",
    "An old map of the county hangs in the hall above the stairs.",
    "They talked about the harvest and the price of wool until it was dark.",
)
