"""The word book of the pocket domains: 162 everyday English words of three and four letters."""

from typing import Final

_BOOK = """
ant arm art ash axe bag bar bat bay bed bee bell belt big bird boat body bone book born bow box boy bud bug
bus cake cap car cart cat clay coat code coin cold corn cow crab cup day deer dish dog door dot duck dust ear
east egg elf end fan farm fire fish flag foot fork fox frog game gate gift girl goat gold hand hat hen hill
home horn ice ink iron jam jar joy key kid king kite lake lamp land leaf lid lime lion lip map mark milk mill
mist moon mud nail neck nest net nose note nut oak oar oil owl pan park path pea pen pie pig pin pond pot rain
ring road rock roof root rope rose rug salt sand sea seed ship shoe silk sky snow song star sun tail tea tent
tin toad top toy tree van vase vine wall wave web west wind wing wolf wood yard zoo
"""

WORDS: Final = tuple(_BOOK.split())
