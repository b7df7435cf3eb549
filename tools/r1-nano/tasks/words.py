# SPDX-License-Identifier: Apache-2.0
"""Word lists: names, things to count, and common words to spell."""

NAMES = ("Ann Bob Tom Mia Leo Eva Max Zoe Sam Amy Ben Kim Dan Liz Ray Joy Tim Sue Jack Lucy Paul Emma Nina Alex Omar Rosa Ivan"
         " Maria Peter Laura David Sara").split()
NAME_SET = frozenset(NAMES)
THINGS = ("apples books pens coins cards eggs stones cakes balls shells stamps flowers plums oranges pencils marbles stickers"
          " cookies buttons lemons toys bottles boxes candles tickets").split()
PLACES = "a basket,a box,a bag,a jar,a drawer,a shop,a garden,a room".split(",")

WORDS = """
apple banana orange lemon cherry grape melon peach plum berry strawberry bread butter cheese milk water coffee sugar salt pepper
rice soup cake cookie honey onion tomato potato carrot garden flower tree leaf root grass forest river ocean island mountain
valley desert beach stone sand cloud rain snow storm wind thunder summer winter spring autumn morning evening night today
tomorrow yesterday week month year hour minute second time clock calendar house home door window wall floor roof kitchen table
chair bed lamp mirror carpet garage street road bridge city town village country school teacher student lesson paper pencil
book letter word sentence story poem number zero three seven eleven hundred thousand animal dog cat horse cow sheep goat pig
chicken duck goose rabbit mouse tiger lion bear wolf fox deer monkey elephant giraffe zebra camel snake turtle frog fish shark
whale dolphin eagle parrot penguin spider butterfly bee ant person child mother father sister brother friend neighbor doctor
nurse farmer baker driver pilot sailor soldier king queen prince castle music song piano guitar violin drum dance paint picture
color red blue green yellow purple black white brown silver golden happy sad angry brave clever quiet loud quick slow strong
weak small large tall short long wide narrow heavy light dark bright clean dirty empty full early late warm cold dry wet new old
young rich poor easy hard simple question answer reason idea dream hope love peace power energy engine machine computer keyboard
screen camera phone radio network program memory model planet earth moon sun star rocket space science history nature health
travel train plane ship boat bicycle car truck wheel station airport ticket market money coin price gift basket bottle box bag
key lock hammer nail knife fork spoon plate cup glass shirt jacket shoe hat glove button pocket ring head face eye ear nose
mouth hand finger arm leg foot heart brain voice smile laugh cry walk run jump swim climb fly sleep wake eat drink cook write
read speak listen think learn teach work play build break open close start finish win lose find search carry push pull throw
catch give take buy sell pay keep send bring hold turn follow lead grow change begin end mississippi balloon committee
bookkeeper address success pattern letter rubber summer hammer puzzle button yellow pepper cotton coffee
""".split()
WORDS = sorted(set(WORDS))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def any_word(rng, low=3, high=10):
    """A common word, or in three of ten draws a random string of letters."""
    if rng.random() < 0.3:
        return "".join(rng.choice(LETTERS) for _ in range(rng.randint(low, min(high, 9))))
    while True:
        word = rng.choice(WORDS)
        if low <= len(word) <= high:
            return word


def name_pair(rng, count=2):
    return rng.sample(NAMES, count)
