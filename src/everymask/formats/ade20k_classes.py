"""The 150 classes of ADE20K's scene parsing challenge 2016: names, colours, and which are things.

Facts. Names are those of `objectInfo150.txt`, colours (787878 is red, green and blue of 120) those of `color150.mat`,
both from github.com/CSAILVision/sceneparsing; things are the 100 classes of the instance segmentation challenge 2017.
"""

from __future__ import annotations

from everymask.types import Categories, Category

# In order of their values in the masks, from 1 on; 0 is void.
_TABLE = """\
787878 stuff wall
b47878 stuff building, edifice
06e6e6 stuff sky
503232 stuff floor, flooring
04c803 stuff tree
787850 stuff ceiling
8c8c8c stuff road, route
cc05ff thing bed
e6e6e6 thing windowpane, window
04fa07 stuff grass
e005ff thing cabinet
ebff07 stuff sidewalk, pavement
96053d thing person, individual, someone, somebody, mortal, soul
787846 stuff earth, ground
08ff33 thing door, double door
ff0652 thing table
8fff8c stuff mountain, mount
ccff04 stuff plant, flora, plant life
ff3307 thing curtain, drape, drapery, mantle, pall
cc4603 thing chair
0066c8 thing car, auto, automobile, machine, motorcar
3de6fa stuff water
ff0633 thing painting, picture
0b66ff thing sofa, couch, lounge
ff0747 thing shelf
ff09e0 stuff house
0907e6 stuff sea
dcdcdc thing mirror
ff095c stuff rug, carpet, carpeting
7009ff stuff field
08ffd6 thing armchair
07ffe0 thing seat
ffb806 thing fence, fencing
0aff47 thing desk
ff290a stuff rock, stone
07ffff thing wardrobe, closet, press
e0ff08 thing lamp
6608ff thing bathtub, bathing tub, bath, tub
ff3d06 thing railing, rail
ffc207 thing cushion
ff7a08 stuff base, pedestal, stand
00ff14 thing box
ff0829 thing column, pillar
ff0599 thing signboard, sign
0633ff thing chest of drawers, chest, bureau, dresser
eb0cff thing counter
a09614 stuff sand
00a3ff thing sink
8c8c8c stuff skyscraper
fa0a0f thing fireplace, hearth, open fireplace
14ff00 thing refrigerator, icebox
1fff00 stuff grandstand, covered stand
ff1f00 stuff path
ffe000 thing stairs, steps
99ff00 stuff runway
0000ff thing case, display case, showcase, vitrine
ff4700 thing pool table, billiard table, snooker table
00ebff thing pillow
00adff thing screen door, screen
1f00ff stuff stairway, staircase
0bc8c8 stuff river
ff5200 stuff bridge, span
00fff5 thing bookcase
003dff stuff blind, screen
00ff70 thing coffee table, cocktail table
00ff85 thing toilet, can, commode, crapper, pot, potty, stool, throne
ff0000 thing flower
ffa300 thing book
ff6600 stuff hill
c2ff00 thing bench
008fff thing countertop
33ff00 thing stove, kitchen stove, range, kitchen range, cooking stove
0052ff thing palm, palm tree
00ff29 thing kitchen island
00ffad thing computer, computing machine, computing device, data processor, electronic computer, information processing system
0a00ff thing swivel chair
adff00 thing boat
00ff99 stuff bar
ff5c00 thing arcade machine
ff00ff stuff hovel, hut, hutch, shack, shanty
ff00f5 thing bus, autobus, coach, charabanc, double-decker, jitney, motorbus, motorcoach, omnibus, passenger vehicle
ff0066 thing towel
ffad00 thing light, light source
ff0014 thing truck, motortruck
ffb8b8 stuff tower
001fff thing chandelier, pendant, pendent
00ff3d thing awning, sunshade, sunblind
0047ff thing streetlight, street lamp
ff00cc thing booth, cubicle, stall, kiosk
00ffc2 thing television, television receiver, television set, tv, tv set, idiot box, boob tube, telly, goggle box
00ff52 thing airplane, aeroplane, plane
000aff stuff dirt track
0070ff thing apparel, wearing apparel, dress, clothes
3300ff thing pole
00c2ff stuff land, ground, soil
007aff thing bannister, banister, balustrade, balusters, handrail
00ffa3 stuff escalator, moving staircase, moving stairway
ff9900 thing ottoman, pouf, pouffe, puff, hassock
00ff0a thing bottle
ff7000 stuff buffet, counter, sideboard
8fff00 stuff poster, posting, placard, notice, bill, card
5200ff stuff stage
a3ff00 thing van
ffeb00 thing ship
08b8aa thing fountain
8500ff stuff conveyer belt, conveyor belt, conveyer, conveyor, transporter
00ff5c stuff canopy
b800ff thing washer, automatic washer, washing machine
ff001f thing plaything, toy
00b8ff stuff swimming pool, swimming bath, natatorium
00d6ff thing stool
ff0070 thing barrel, cask
5cff00 thing basket, handbasket
00e0ff stuff waterfall, falls
70e0ff stuff tent, collapsible shelter
46b8a0 thing bag
a300ff thing minibike, motorbike
9900ff stuff cradle
47ff00 thing oven
ff00a3 thing ball
ffcc00 thing food, solid food
ff008f thing step, stair
00ffeb stuff tank, storage tank
85ff00 thing trade name, brand name, brand, marque
ff00eb thing microwave, microwave oven
f500ff thing pot, flowerpot
ff007a thing animal, animate being, beast, brute, creature, fauna
fff500 thing bicycle, bike, wheel, cycle
0abed4 stuff lake
d6ff00 thing dishwasher, dish washer, dishwashing machine
00ccff thing screen, silver screen, projection screen
1400ff stuff blanket, cover
ffff00 thing sculpture
0099ff thing hood, exhaust hood
0029ff thing sconce
00ffcc thing vase
2900ff thing traffic light, traffic signal, stoplight
29ff00 thing tray
ad00ff thing ashcan, trash can, garbage can, wastebin, ash bin, ash-bin, ashbin, dustbin, trash barrel, trash bin
00f5ff thing fan
4700ff stuff pier, wharf, wharfage, dock
7a00ff stuff crt screen
00ffb8 thing plate
005cff thing monitor, monitoring device
b8ff00 thing bulletin board, notice board
0085ff stuff shower
ffd600 thing radiator
19c2c2 thing glass, drinking glass
66ff00 thing clock
5c00ff thing flag
"""  # noqa: E501 - names are as long as the official ones


def _category(value: int, line: str) -> Category:
    colour, kind, name = line.split(" ", 2)
    red, green, blue = bytes.fromhex(colour)
    return Category(value, name, kind == "thing", (red, green, blue))


CLASSES = Categories(_category(value, line) for value, line in enumerate(_TABLE.splitlines(), 1))
"""The classes with the values that they have in the masks."""
