"""Sentences that make synthesis fail: repetitions, numbers, tongue twisters, very long and very short ones.

Written for this purpose, but for three tongue twisters that everybody knows. Autoregressive models skip or repeat on
the first kind and lose the thread on the long ones; seed-tts-eval's hardcase list aims at the same in Chinese.
"""

from __future__ import annotations

from collections.abc import Mapping

# In the words of the bundled teacher, which never met such sentences.
NANO: Mapping[str, tuple[str, ...]] = {
    "repetition": (
        "tiger tiger tiger tiger.",
        "seven seven seven seven.",
        "the little little little monkey.",
        "anna and anna and anna and anna.",
        "please please please call emma.",
        "always again always again always again.",
        "the horse and the horse and the horse.",
        "two two three three two two.",
    ),
    "numbers": (
        "eleven twelve twenty hundred.",
        "five nine five nine five nine.",
        "seven eleven seven twelve seven twenty.",
        "hundred twenty two hundred twelve.",
        "please call oscar at hundred twenty seven.",
        "three four five six seven eight nine eleven.",
        "they wanted twenty three castle today.",
        "nine six three nine six four.",
    ),
    "twisters": (
        "peter painted the purple pillow.",
        "the golden green giant guitar.",
        "lazy laura loved the little ladder.",
        "martin moved my mirror monday.",
        "simon and sophie suddenly stole the silver spider.",
        "the button was broken and the bottle was broken.",
        "helen the happy hungry horse carried the heavy hammer.",
        "the carpet and the camera and the camel and the candle.",
    ),
    "long": (
        "the angry penguin carefully followed the famous wooden bicycle near the river.",
        "anna and peter and maria watched the giant turtle near the village.",
        "the hungry wolf is in the forest and the lazy lion is in the garden.",
        "please bring the yellow umbrella and the silver kettle today.",
        "yesterday julia visited the museum and tomorrow thomas wanted the castle.",
        "where is my purple table and where is my wooden window.",
        "robert quickly washed the heavy carpet and emma painted the bottle.",
        "the clever fox never opened the letter near the quiet church.",
    ),
    "short": (
        "tiger.",
        "the fox.",
        "anna.",
        "seven.",
        "please call.",
        "never again.",
        "today.",
        "my apple.",
    ),
}

ENGLISH: Mapping[str, tuple[str, ...]] = {
    "repetition": (
        "No, no, no, no, that is not what I meant at all.",
        "The bell rang and rang and rang and rang until nobody could hear it any more.",
        "He said that that that that she had written was one too many.",
        "Left, right, left, right, left, right, and then stop.",
        "Far, far, far away there was a very, very, very small house.",
        "Again and again and again they counted one, two, three, one, two, three.",
        "Had he had had where she had had had, the teacher would have been pleased.",
        "Knock, knock, knock on the door, and knock, knock, knock on the window.",
    ),
    "numbers": (
        "The number is zero seven nine one, double four, two six eight, three three five.",
        "In nineteen ninety nine it cost one hundred and twenty three dollars and forty five cents.",
        "Seventeen, seventy, eighteen, eighty, nineteen, ninety, thirteen, thirty.",
        "Flight four eighteen leaves from gate fifty six at five past six.",
        "Two thirds of three quarters is six twelfths, which is one half.",
        "Nine hundred ninety nine thousand nine hundred and ninety nine, and then a million.",
        "The password is alpha six, bravo sixteen, charlie sixty, delta six hundred and sixty six.",
        "From the first to the thirty first of May the score was eleven to seven.",
    ),
    "twisters": (
        "She sells sea shells by the sea shore.",
        "Peter Piper picked a peck of pickled peppers.",
        "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
        "Six sleek swans swam swiftly southwards through the seething surf.",
        "The sixth thief thoroughly thrashed the three thick thistles.",
        "Red lorries, yellow lorries, and rural brewery lorries rarely rally.",
        "Which Swiss witch switched the wristwatches of which Swiss witches?",
        "A proper copper coffee pot is not a proper cotton copy of a copper cup.",
    ),
    "long": (
        "When the ferry at last came round the point, with its lamps already lit although it was not yet evening, the "
        "people on the pier picked up their bags, put them down again, and waited, because they had been told so often "
        "that day that it was coming that hardly anybody believed it now.",
        "The report, which had been promised for the spring, then for the summer, and finally for some unnamed day "
        "before the end of the year, ran to four hundred pages, of which the first ten thanked everyone involved, the "
        "last ninety were tables, and the rest said that more research was needed.",
        "If you turn left behind the bakery, follow the wall until it ends, cross the wooden bridge, keep the stream "
        "on your right, and ask at the second farm for the key, you will find the chapel locked all the same, for the "
        "farmer lends the key to nobody before noon.",
        "My grandmother kept buttons in one tin, nails in another, letters in a third, and biscuits in a fourth, and "
        "since all four tins had once held the same brand of tea, nobody but she could ever find a biscuit without "
        "first finding buttons, nails, and letters.",
        "It rained on Monday, it rained harder on Tuesday, on Wednesday the cellar filled, on Thursday we carried "
        "everything upstairs, on Friday the sun came out, and on Saturday we carried everything downstairs again.",
        "Nobody who had seen the old engine start on a cold morning, coughing, shaking, falling silent, and starting "
        "once more with a bang that sent the pigeons over the roof, would have guessed that it was to run without a "
        "fault for another thirty years.",
    ),
    "short": ("Yes.", "No!", "Why?", "Go on.", "Stop it.", "Thank you.", "Oh dear.", "At last."),
}
