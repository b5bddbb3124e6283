"""The words in the built-in model's tasks."""

from __future__ import annotations

_NOUNS = """
    acorn anchor apple apron arch arrow ash atlas attic badge baker bamboo banjo barn basil basket beach beacon
    bear beaver bell bench berry birch bird blade blanket boat bolt bone book boot bottle bowl box bramble branch
    brass bread brick bridge broom brush bucket bugle bush butter button cabin cable cactus cake camel camp candle
    canoe canyon cape card carpet cart castle cat cave cedar cello chain chair chalk cherry chest chimney circle
    clay cliff cloak clock cloud clover coal coast coat cobalt comet compass copper coral cork corn cotton couch
    cow crab cradle crane crate creek crow crown crystal cup curtain daisy dam dawn deck deer desert desk diamond
    dish dock dog dome door dove dragon drum duck dune eagle earth echo elbow elm ember engine falcon farm feather
    fence fern ferry fiddle field fig flag flame flask flint flood flour flute fog forest fork fort fountain fox
    frame frog frost garden gate ghost giant ginger glass glove goat gold goose grain grape grass gravel grove
    guitar gull hammer harbor harp hat hawk hay hazel heron hill hinge honey hood hook horn horse hotel house ice
    inn iris iron island ivory ivy jacket jar jewel jungle kettle key king kite knife knot ladder lake lamb lamp
    lantern lark lava lawn leaf lemon letter library lily lime linen lion lizard lock log loom lotus lynx magnet
    mango map maple marble market marsh mask mast meadow melon metal mill mint mirror mist mole monkey moon moose
    moss moth mountain mouse museum needle nest net nickel night nut oak oar oasis ocean olive onion opal orbit
    orchard orchid otter oven owl oyster paddle palace palm panda paper park parrot path peach pearl pebble pen
    pepper piano pigeon pillar pilot pine pipe pirate planet plate plum pocket pond pony poppy port potato prism
    pump puppet quail quarry queen quill rabbit radio raft rail rain raven reed reef ribbon rice ridge ring river
    road robin rock rocket roof root rope rose ruby rudder saddle sail salmon salt sand scarf school seal seed
    shade shark sheep shell shield ship shoe shore silk silver sky sled slope smoke snail snow soap sock spark
    spear spider spoon spring spruce square stable staff stamp star statue steam steel stone stork storm stove
    straw stream street string sugar summit sun swan sword table tail tailor temple tent thorn thread throne
    thunder tide tiger timber tin torch tower town trail train tree trumpet tulip tunnel turtle valley vase velvet
    vessel village vine violin wagon wall walnut water wave well whale wharf wheat wheel willow wind window wing
    winter wolf wood wool yard zebra
"""
NOUNS = _NOUNS.split()

SORTED_WORDS = NOUNS[::9]
"""The words of the sorting task: enough to need a rule, few enough for a small model to learn the order of all."""
