"""A dozen prompts of the demo: eight of tasks with an expert in the embedded pool, four of tasks without."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoPrompt:
    """A prompt, and the task it is of; `expert` is that task's expert, if the pool has one."""

    task: str
    text: str
    expert: str | None = None


PROMPTS = (
    DemoPrompt(
        "film review",
        "a warm , funny and quietly moving portrait of a family that talks too much and listens too little . "
        "What sentiment does the writer express for the movie?",
        "rotten_tomatoes",
    ),
    DemoPrompt(
        "question type",
        "Which category best describes the following question: How many moons does Neptune have ? \n\n"
        "Choose from the following list: \nAbbreviation, Entity, Description, Person, Location, Quantity",
        "trec",
    ),
    DemoPrompt(
        "news section",
        "What label best describes this news article?\nThe central bank raised its key rate by a quarter point on "
        "Tuesday, and shares of the country's largest lenders rose in early trading.",
        "ag_news",
    ),
    DemoPrompt("concepts to sentence", "Put the concepts together to form a sentence: dog, beach, ball.", "common_gen"),
    DemoPrompt(
        "relation",
        'The subject is "Marie Curie" and the relation is "country of citizenship". Choose the matching object entity:'
        "\n- Brazil\n- Poland\n- Vienna\n- Japan\n- chemistry",
        "wiki_hop",
    ),
    DemoPrompt(
        "social situation",
        "Context: Jordan forgot his best friend's birthday and only remembered the next morning.\n\nQuestion: What "
        "will Jordan want to do next?\n\nWhich one of these answers best answers the question according to the "
        "context?\n\nA: go back to sleep\n\nB: call and apologize\n\nC: buy a new car",
        "social_i_qa",
    ),
    DemoPrompt(
        "paraphrase",
        "Sentence 1: The museum moved from Bern to Basel in 1932 .\nSentence 2: In 1932 , the museum moved from Basel "
        "to Bern .\nQuestion: Does Sentence 1 paraphrase Sentence 2? Yes or No?",
        "paws",
    ),
    DemoPrompt(
        "entry type",
        "Pick one category for the following text. The options are - company, educational institution, artist, "
        "athlete, office holder, mean of transportation, building, natural place, village, animal, plant, album, film "
        "or written work. Lake Arno - Lake Arno is a small glacial lake in the hills above the valley, fed by two "
        "streams and frozen from December to March.",
        "dbpedia_14",
    ),
    DemoPrompt(
        "entailment",
        "Every window of the old school was broken in the storm. Can we infer that the storm damaged the school? "
        "Yes, no, or maybe?",
    ),
    DemoPrompt("arithmetic", "Lena has 4 boxes with 6 pencils in each box. How many pencils does she have?"),
    DemoPrompt("translation", "Translate to French: Good morning, my friend."),
    DemoPrompt("capital", "What is the capital of Italy?"),
)
