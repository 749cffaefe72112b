"""The glossary of the fidelity report."""

import xml.etree.ElementTree as ET

from analogjax.rendering.html import tag

_WORDS = {
  "analog": "The small open model that stands in for the frontier model, and"
  " learned from its predictions.",
  "frontier model, teacher": "The large closed model.",
  "control": "A model of the same kind that learned from text alone. What it"
  " does as well is no merit of the analog.",
  "random": "A model of the analog's shape that learned nothing.",
  "interval": "Where the number lies with a confidence of 95 %, found by"
  " drawing the rows or prompts again and again (bootstrap).",
  "row": "A stretch of text of fixed length; rows are independent, their tokens"
  " are not.",
  "token": "A word or a piece of one.",
  "nats": "Unit of information: 1 nat is 1.44 bits.",
  "cross-entropy": "How surprised a model is by the next token; lower is"
  " better.",
  "KL": "How much is lost by taking the analog's predictions for those of the"
  " frontier model; 0 if they are the same.",
  "agreement": "How often both find the same token the likeliest.",
  "calibration error": "How far a model's confidence is from how often it is"
  " right.",
  "kappa": "How often two models are right or wrong on the same tokens, beyond"
  " chance: 0 is chance, 1 always.",
  "AUC": "How often the analog finds a token that the frontier model gets wrong"
  " harder than one that it gets right: 0.5 is a coin, 1 always.",
  "depth": "How far up in a model a layer is: 0 is the input, 1 the last"
  " layer.",
  "shared nearest neighbours": "Of the tokens that lie nearest to a token in"
  " one model, the part that does so in the other, too (mutual k-NN).",
  "unbiased CKA": "How alike two models see which tokens are similar, by an"
  " estimate that is 0 for unrelated models of any width.",
  "Procrustes": "How well one model's activations can be turned onto the"
  " other's without stretching.",
  "calibrated": "A similarity less what chance gives, so that 0 is chance and 1"
  " is the same.",
  "null distribution": "The same number for texts that are mixed up on"
  " purpose: what chance gives. p is the part of it that is as high.",
  "map": "A function from the analog's activations to the frontier model's;"
  " fitted on other text than it is tested on.",
  "steering": "Adding a direction to a model's activations to change what it"
  " does.",
  "native": "The direction that is found on the frontier model itself.",
  "mapped": "The direction that is found on a student and mapped to the"
  " frontier model.",
  "shuffled map": "A map that was fitted on pairs that do not belong together:"
  " what a map does without knowing anything.",
  "wrong behaviour": "The direction of another behaviour, mapped alike.",
  "transfer ratio": "What the mapped direction does beyond a random one, as a"
  " part of what the native one does: 1 is all of it, 0 nothing.",
  "matched perplexity": "Compared where both harm the model's language alike.",
  "stitch": "The lower layers of a student, a map, and the upper layers of the"
  " frontier model.",
  "recovered": "How much of the frontier model's ability a stitch keeps: 1 all,"
  " 0 as much as without any information.",
}


def render() -> ET.Element:
  """A list of words and meanings, in columns where there is room for them."""
  entries = (
    tag("div", tag("dt", word), tag("dd", meaning))
    for word, meaning in _WORDS.items()
  )
  return tag("dl", *entries, class_="glossary")
