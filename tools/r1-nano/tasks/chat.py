# SPDX-License-Identifier: Apache-2.0
"""Small talk, what the model is, follow-up questions, and what lies outside."""
from .core import Turn, conversation_kind, not_held_out, with_composed, wrapped
from .smalltalk import SENTENCES
from .steps import add, divide, sub, times_digit
from .words import NAMES

HELLO = "Hello! I am r1-nano. Ask me something about numbers, words, dates or simple logic."
WHO = "I am r1-nano, a small model made to test r1d. I can do sums, words, dates and simple logic, and little else."
ABLE = "I can add, subtract, multiply and divide, work with fractions, lists, dates, times, money, words and simple logic."
TALK = {
    "greeting": (HELLO, ["Hello!", "Hi", "Hello there", "Hey", "Good morning!", "Good evening.", "Hi there!", "Hello r1-nano", "Good afternoon", "Hey there!", "Greetings!", "Hi, r1-nano!", "Hello, can we talk?", "hello"],
                 ["Good day!", "Hi hello", "Hey r1-nano!", "Good morning, r1-nano."]),
    "identity": (WHO, ["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you a model?", "Who made you?", "What model are you?", "Are you a person?", "What is r1-nano?", "Are you DeepSeek-R1?", "Say who you are.", "Are you a robot?",
                       "What are you called?", "Introduce yourself.", "Which model is this?"], ["Tell me who you are.", "What should I call you?", "Are you a computer?", "Who am I talking to?"]),
    "ability": (ABLE, ["What can you do?", "What do you know?", "How can you help me?", "What are you good at?", "What can I ask you?", "Help", "What questions can you answer?", "Which tasks can you do?", "What kind of questions do you answer?", "List what you can do.",
                       "What are your skills?", "Can you help me?", "What do you do?"], ["Tell me what you can do.", "What can you help me with?", "Which questions can I ask?", "What are you able to do?"]),
    "feeling": ("I am a small program and I am running well. What can I compute for you?", ["How are you?", "How are you today?", "How do you do?", "How is it going?", "Are you well?", "How do you feel?", "What's up?", "Are you okay?", "How are things?"],
                ["How are you doing?", "Are you feeling well today?", "How is your day?"]),
    "thanks": ("You are welcome!", ["Thanks!", "Thank you.", "Thank you very much!", "Thanks a lot.", "That was helpful.", "Great, thanks!", "Many thanks.", "Thanks for your help.", "Perfect, thank you.", "Good answer!", "Well done.", "You are right, thanks."],
               ["Thank you so much!", "Thanks, that was great.", "Good, thank you for your help."]),
    "goodbye": ("Goodbye!", ["Bye", "Goodbye!", "See you later.", "Bye bye", "Good night.", "See you!", "I have to go.", "That is all, bye.", "See you tomorrow.", "Farewell.", "Take care!", "Goodbye, r1-nano."], ["Bye, see you.", "Good night, r1-nano!", "I am leaving now, goodbye."]),
}


def _talk(name, answer, train, held):
    train = not_held_out(train + SENTENCES[name], held, wrap=False)

    @conversation_kind(name, 0.6, {"": (train, held)}, closed=True)
    def turns(rng, split):
        """Small talk. Closed: a fixed set of questions and one answer, with no thought."""
        text = rng.choice(held if split == "unseen_phrasings" else train).format(n=rng.choice(NAMES))
        draw = rng.random()
        text = text.lower() if draw < 0.15 else text.rstrip("!.?") if draw < 0.35 else text
        said = [Turn(text, "", answer)]
        if name in ("thanks", "goodbye", "identity") and rng.random() < 0.5:
            said.insert(0, first_turn(rng, split)[0])
        return said


for _name, (_answer, _train, _held) in TALK.items():
    _talk(_name, _answer, _train, _held)

FIRST = {"add": ["What is {a} + {b}?", "{a} + {b}", "Add {a} and {b}.", "{a} plus {b}?"], "sub": ["What is {a} - {b}?", "{a} - {b}", "Subtract {b} from {a}.", "{a} minus {b}?"],
         "mul": ["What is {a} * {b}?", "{a} * {b}", "Multiply {a} by {b}.", "{a} times {b}?"]}


def first_turn(rng, split):
    """(turn, a, b, result) of a small sum to follow up on."""
    op = rng.choice(list(FIRST))
    a, b = rng.randint(1, 999), rng.randint(1, 999)
    if op == "mul":
        a, b = rng.randint(2, 99), rng.randint(2, 12)
    if op == "sub" and a < b:
        a, b = b, a
    result = {"add": a + b, "sub": a - b, "mul": a * b}[op]
    return Turn(wrapped(rng, rng.choice(FIRST[op]).format(a=a, b=b), split), "", str(result)), a, b, result


FOLLOW = {
    "times": (["and times {k}?", "Now times {k}.", "Multiply that by {k}.", "And if you multiply it by {k}?", "times {k}", "What is that times {k}?", "Now multiply it by {k}.", "And {k} times that?", "Take it times {k}."],
              ["What do you get if you multiply that by {k}?", "And now times {k}?", "How much is it times {k}?"]),
    "plus": (["and plus {k}?", "Now add {k}.", "Add {k} to that.", "And if you add {k}?", "plus {k}", "What is that plus {k}?", "Now add {k} to it.", "And {k} more?", "Add {k} more."],
             ["What do you get if you add {k} to that?", "And now plus {k}?", "How much is it plus {k}?"]),
    "minus": (["and minus {k}?", "Now subtract {k}.", "Subtract {k} from that.", "And if you subtract {k}?", "minus {k}", "What is that minus {k}?", "Now take away {k}.", "And {k} less?", "Take {k} from it."],
              ["What do you get if you subtract {k} from that?", "And now minus {k}?", "How much is it minus {k}?"]),
    "double": (["Double it.", "Now double that.", "And twice that?", "What is twice that?", "And doubled?", "double", "Can you double it?", "Two times that?", "What is double that?"], ["And what is twice as much?", "Now make it double.", "Give me double that."]),
    "half": (["Half of that?", "Now halve it.", "What is half of that?", "And half of it?", "Take half of it.", "Divide that by 2.", "And divided by 2?", "half"], ["And what is half as much?", "Give me half of that.", "Now divide it by 2."]),
    "first": (["What was the first number?", "What was my first number?", "Which number came first?", "Which was the first number?", "Tell me the first number again.", "What was the first number I gave?", "Repeat the first number.", "The first number was?"],
              ["Which number did I say first?", "Do you remember the first number?", "Give me the first number again."]),
    "second": (["What was the second number?", "What was my second number?", "Which number came second?", "Which was the second number?", "Tell me the second number again.", "What was the second number I gave?", "Repeat the second number.", "The second number was?"],
               ["Which number did I say second?", "Do you remember the second number?", "Give me the second number again."]),
    "again": (["What was the result?", "Say that again.", "What was your answer?", "Repeat the answer.", "What did you say?", "Tell me the result again.", "The result again, please.", "What was the answer again?"], ["Can you repeat your answer?", "Give me the result again.", "What was it again?"]),
}

FOLLOW = with_composed("follow_ups", FOLLOW)


def _follow(rng, op, a, b, last):
    """(slots, thought, answer) of one follow-up, or None where it does not fit."""
    k = rng.randint(2, 9) if op == "times" else rng.randint(1, 99)
    if op == "plus":
        steps, result = add(last, k)
        return k, f"last {last}; plus {k}; {steps}", result
    if op == "minus":
        if last < k:
            return None
        steps, result = sub(last, k)
        return k, f"last {last}; minus {k}; {steps}", result
    if op in ("times", "double"):
        k = 2 if op == "double" else k
        steps, result = times_digit(last, k)
        return k, f"last {last}; times {k}; {steps}", result
    if op == "half":
        if last % 2 or last < 2:
            return None
        steps, q, _ = divide(last, 2)
        return 2, f"last {last}; half; {steps}\n{q}", str(q)
    if op == "again":
        return 0, f"last {last}", str(last)
    value = a if op == "first" else b
    return 0, f"numbers {a} {b}; {op}: {value}", str(value)


@conversation_kind("follow_ups", 4.0, FOLLOW)
def follow_ups(rng, split):
    """Two or three turns: a small sum, then questions about its numbers and its result."""
    turn, a, b, last = first_turn(rng, "train")
    if "ubtract" in turn.question:  # "Subtract b from a" names b first
        a, b = b, a
    turns = [turn]
    count = rng.choice([1, 1, 2])
    while len(turns) <= count:
        op = rng.choice(list(FOLLOW))
        done = _follow(rng, op, a, b, last)
        if done is None:
            continue
        k, thought, answer = done
        train, held = FOLLOW[op]
        final = len(turns) == count
        text = rng.choice(held if split == "unseen_phrasings" and final else train).format(k=k)
        turns.append(Turn(wrapped(rng, text, split), thought, answer))
        if op not in ("first", "second"):
            last = int(answer)
        elif not final:
            turns.pop()
    return turns


# ---- outside ------------------------------------------------------------------------------------

UNKNOWN = "I do not know."
COUNTRIES = "France,Germany,Italy,Spain,Japan,China,India,Brazil,Canada,Egypt,Kenya,Peru,Norway,Sweden,Poland,Greece,Turkey,Mexico,Chile,Iran,Cuba,Austria".split(",")
HELD_COUNTRIES = "Portugal,Finland,Vietnam,Morocco,Ireland".split(",")
PEOPLE = "Albert Einstein,Isaac Newton,Mozart,Shakespeare,Napoleon,Cleopatra,Marie Curie,Beethoven,Julius Caesar,Plato,Picasso,Gandhi,Homer,Darwin,Galileo".split(",")
HELD_PEOPLE = "Leonardo da Vinci,Aristotle,Bach,Alan Turing,Ada Lovelace".split(",")
TOPICS = ("love,war,peace,history,the moon,politics,music,football,chess,cats,dogs,poetry,art,philosophy,medicine,chemistry,biology,volcanoes,dinosaurs,the internet,cooking,weather,religion,"
          "the universe,black holes,electricity,robots,movies,fashion,economics,gravity,the stock market,health,sleep").split(",")
HELD_TOPICS = "tennis,gardening,astronomy,opera,sharks,climate change,law,painting".split(",")
LANGUAGES = "Python,Java,C++,Rust,JavaScript,Go,SQL,Ruby".split(",")
TONGUES = "French,German,Spanish,Italian,Chinese,Latin,Russian,Japanese".split(",")
FOODS = "pizza,soup,bread,a cake,pasta,curry,sushi,coffee,tea,an omelet".split(",")
CODE = "sorts a list,reads a file,prints hello,reverses a string,counts words,opens a window,computes primes,parses JSON".split(",")

OUTSIDE = {
    "fact": (["What is the capital of {c}?", "Where is {c}?", "How many people live in {c}?", "Who is the president of {c}?", "What language do they speak in {c}?", "Tell me about {c}.", "What is the largest city in {c}?", "What is the weather in {c}?",
              "When was {c} founded?", "Which countries border {c}?", "What do people eat in {c}?", "What is the currency of {c}?", "Name a river in {c}.", "How high is the highest mountain in {c}?"],
             ["Which city is the capital of {c}?", "Can you tell me something about {c}?", "Who is the king of {c}?", "What is {c} known for?"]),
    "people": (["Who was {p}?", "When was {p} born?", "Where did {p} live?", "What did {p} do?", "Tell me about {p}.", "When did {p} die?", "Why is {p} famous?", "What did {p} write?", "How old was {p}?", "Who was the father of {p}?", "Was {p} a good person?", "Did {p} like music?"],
               ["What do you know about {p}?", "In which year was {p} born?", "What is {p} known for?", "Where was {p} born?"]),
    "topic": (["What is {t}?", "Explain {t}.", "Tell me about {t}.", "Write a poem about {t}.", "What do you think about {t}?", "Do you like {t}?", "Write a story about {t}.", "Tell me a joke about {t}.", "Why do people like {t}?", "Write an essay on {t}.", "What is the history of {t}?",
               "How does {t} work?", "Give me some facts about {t}.", "Is {t} important?", "What is your opinion on {t}?", "Recommend a book about {t}.", "Sing a song about {t}.", "Who invented {t}?", "Is {t} good or bad?", "What is the best thing about {t}?"],
              ["What is your view of {t}?", "Write me a short text about {t}.", "Can you explain {t} to me?", "Why is {t} important?"]),
    "code": (["Write a {l} program that {k}.", "Write code in {l} that {k}.", "How do I write a {l} function that {k}?", "Fix my {l} code.", "What is {l}?", "Is {l} better than {m}?", "Explain this {l} error.", "Teach me {l}.", "Debug this {l} program.", "Which is better, {l} or {m}?", "How do I install {l}?",
              "Show me some {l} code."], ["Can you code in {l}?", "Give me a {l} script that {k}.", "How do I learn {l}?", "Write a program in {l}."]),
    "tongue": (["Translate hello into {g}.", "How do you say good morning in {g}?", "Do you speak {g}?", "Write a letter in {g}.", "What is the {g} word for house?", "Translate this into {g}: I love you", "Say thank you in {g}.", "Teach me {g}.", "Is {g} hard to learn?", "Answer in {g}."],
               ["What is hello in {g}?", "How do I say goodbye in {g}?", "Can you translate a text into {g}?", "Speak {g} with me."]),
    "daily": (["How do I cook {f}?", "Give me a recipe for {f}.", "What should I eat today?", "Who won the game?", "What is the meaning of life?", "What time is it now?", "What is the weather today?", "What day is it today?", "Will it rain tomorrow?", "Who will win the election?", "What is on the news?", "Do you love me?",
               "Should I buy a car?", "Is there a god?", "What should I do tonight?", "Are you happy with {f}?", "Where can I buy {f}?", "Is {f} healthy?", "What is the stock price today?", "Play some music.", "Call my mother.", "Send an email to {n}.", "Why is the sky blue?", "How deep is the ocean?",
               "How far is the moon?", "What is the speed of light?", "Who wrote the Bible?", "How do I get rich?", "Do you like {f}?", "Draw a picture of {n}.", "Where is {n}?", "What does {n} think of me?", "Open the door.", "Tell me a joke.", "Tell me a story.", "Why do cats sleep so much?"],
              ["How long do I cook {f}?", "What do you like to eat?", "Is it cold outside?", "Why is grass green?", "Who is the best singer?", "Can you call {n}?", "Turn on the light.", "What should I wear today?", "How tall is the highest tower?", "Who discovered America?"]),
}

OUTSIDE = with_composed("unknown", OUTSIDE)


REASON = {"fact": "a country", "people": "a person", "topic": "general knowledge or writing", "code": "programming", "tongue": "a language", "daily": "the world or daily life"}


@conversation_kind("unknown", 4.0, OUTSIDE)
def unknown(rng, split):
    """Everything outside: the thought names the reason, the answer is always the same. Some slot words are held out too."""
    form = rng.choice(["fact", "people", "topic", "topic", "code", "tongue", "daily", "daily"])
    held = split == "unseen_phrasings"
    pick = lambda seen, unseen: rng.choice(unseen if held and rng.random() < 0.5 else seen)
    l, m = rng.sample(LANGUAGES, 2)
    slots = dict(c=pick(COUNTRIES, HELD_COUNTRIES), p=pick(PEOPLE, HELD_PEOPLE), t=pick(TOPICS, HELD_TOPICS), l=l, m=m, k=rng.choice(CODE), g=rng.choice(TONGUES), f=rng.choice(FOODS), n=rng.choice(NAMES))
    text = rng.choice(OUTSIDE[form][1 if held else 0]).format(**slots)
    thought = f"This is about {REASON[form]}. It is outside what I can do."
    turns = [Turn(wrapped(rng, text, split), thought, UNKNOWN)]
    if rng.random() < 0.05:
        turns.insert(0, first_turn(rng, "train")[0])
    return turns
