"""
The headings of the text files, and the holes that their lines may have. Tables only.

A row is 'heading heading ...': 'hole hole ...'. A hole is usable in three forms: {job} is 'baker',
{a_job} 'a baker', {Job} 'Baker'. wordings.read holds every line of a file against its table.
"""

from data.tinyworld.facts import FIELDS


def each(prefix: str) -> str:
    """'is_job is_home is_pet is_food is_colour is_friend'"""
    return ' '.join(f'{prefix}_{field}' for field in FIELDS)


PERSON = 'name gender job home pet food colour friend he his him does place'
ABOUT_PEOPLE = 'job home pet food colour friend who_is job_does job_place works_where'
ANIMAL = 'animal_sound animal_legs animal_young animal_says animal_parent animal_what'
CLAIM = 'claim_sound claim_colour claim_opposite'
GENERAL = (
    'days_in_week months_in_year seasons_in_year list_days list_months list_seasons '
    'village_name villagers how_many_people village'
)
OWN = 'my_name my_colour my_pet my_city my_food'
ASK_OWN = 'ask_my_name ask_my_colour ask_my_pet ask_my_city ask_my_food'
IDENTITY = 'who_are_you your_name your_maker your_skills human which_model personal languages'
ELSEWHERE = 'country city famous beast subject language pain'
OUTSIDE = (
    f'{ELSEWHERE} {PERSON} program maths measure their animal day stranger word another unknown'
)
# of a word problem, and of a story
PROBLEM = 's s_object t he him his thing things others bag bags eats has pays'
STORY = (
    'a a.his a.him a.job A x b b.his b.job b.pet b.food b.colour B y t t.one_a t.look_a '
    't.many_other ts look where others n home home2 pet food job village bond animal says '
    'to at at2 weekday time month season walk'
)

QUESTIONS = {
    'frame': 'form',
    'words_before words_behind': f'{ELSEWHERE} word another',
    'somebody tale a_story': '',
    f'{ABOUT_PEOPLE} {each("and")} and_name': PERSON,
    each('who'): 'value',
    each('is'): f'{PERSON} value',
    each('or'): f'{PERSON} first second',
    ANIMAL: 'name many sound legs young',
    'opposite choose_opposite spell spell_first length first_letter last_letter and_word': 'word',
    'colour_of': 'thing many are do',
    'which_colour': 'thing first second',
    'thing_of': 'colour',
    CLAIM: 'thing value',
    'after before day_after day_before': 'word kind side',
    'choose_after choose_before': 'word kind',
    'ordinal': 'which kind whole',
    'season_of': 'month',
    'months_of choose_colour choose_sound choose_legs choose_young': 'name',
    f'{GENERAL} {ASK_OWN} and_then and_length say_again what_did_i_ask': '',
    'occurrences': 'word c',
    'count_up count_up_from_one count_down count_down_to_one count_steps': 'a b by step',
    'how_many_numbers': 'a b',
    'number_after number_before': 'n',
    'repeat': 'words',
    'follows': 'words word',
    'tell_story tell_story_of_two': 'about plainly',
    'want_story': 'about',
    OWN: 'value',
    'next_day': 'day',
    'has_things gains losses how_many_has gains_some loses_some': 'name he his him a b things',
}
TALK = {
    IDENTITY: '',
    'around': 'talk',
    'hello hello_nice_to_meet hello_and_more how_are_you how_are_you_today': 'time',
    'good_time good_time_and_more good_night bye bye_and_more bye_at_last': 'time',
    'thanks thanks_and_more praise praise_and_more criticism sorry sad happy lets_talk': 'time',
    'chinese_question chinese_identity chinese_ending': '',
    'chinese_hello chinese_thanks chinese_bye chinese_how_are_you': '',
    'outside_country outside_city outside_famous outside_stranger outside_nonsense': OUTSIDE,
    'outside_private outside_animal outside_weather outside_now outside_subject': OUTSIDE,
    'outside_language outside_program outside_maths outside_advice': OUTSIDE,
}
PROBLEMS = {
    'problem short_problem': 'story question',
    # questions, and parts of the stories
    'left now in_all together each remain how_many_more in_each coins_left coins_paid': PROBLEM,
    'buys loses': PROBLEM,
    # stories of one, two and three steps
    'add add_together add_there take take_there more_than bags own_bags': f'{PROBLEM} a b',
    'price share fill_bags children_share': f'{PROBLEM} a b',
    'gain_give lose_gain gain_get lose_give bags_gain bags_lose every_day': f'{PROBLEM} a b c',
    'pool_and_share lose_and_share': f'{PROBLEM} a b c',
    'times_as_many so_many_more': f'{PROBLEM} a b',
    'spend': f'{PROBLEM} a b d',
    'bags_gain_give gain_lose_give lose_gain_get buy_both every_day_lose': f'{PROBLEM} a b c d',
    'gain_give_share spend_and_get': f'{PROBLEM} a b c d',
    'times_and_more': f'{PROBLEM} a b c',
    # sums
    'bare_sum long_sum': 'sum',
    'named_sum': 'name',
    'plus minus times over plus_sum minus_sum times_sum over_sum': 'a b',
    'plus_noun minus_noun times_noun over_noun': 'a b',
}
VOICES = {  # and these kinds
    **QUESTIONS,
    **TALK,
    'month_after month_before season_after season_before': 'word kind side',
    'story': '',
    'story_about': 'subject',
    'outside outside_villager': OUTSIDE,
    'problem_add problem_add_me problem_take problem_take_me': f'{PROBLEM} a b',
    'problem_times problem_share': f'{PROBLEM} a b',
    'plus minus times over': 'a b',
}
ANSWERS = {
    ABOUT_PEOPLE: PERSON,
    each('who'): 'value names',
    ANIMAL: 'name many sound legs young value',
    'opposite after before follows': 'word value',
    f'colour_of {CLAIM}': 'thing value',
    'ordinal': 'which kind whole value',
    'season_of': 'month value',
    'months_of': 'name value',
    f'{GENERAL} {OWN} {ASK_OWN}': 'value',
    'spell': 'spelt',
    'length first_letter last_letter': 'spelt value',
    'occurrences': 'spelt c value',
    'count repeat': 'row',
    'how_many_numbers': 'row value',
    'has_now has_left has_more in_all are_left together each_gets': f'{PROBLEM} r result',
    'bag_holds they_cost pays coins_left coins_now': f'{PROBLEM} r result',
    IDENTITY: '',
    'hello good_time how_are_you thanks bye praise good_night': 'time',
    'sorry sad happy criticism lets_talk': 'time',
    'chinese_identity chinese_hello chinese_thanks chinese_bye chinese_how_are_you outside': '',
    'has_things': 'name he his him a b things',
    'has_some': 'name r result',
    'what_did_i_ask': 'question',
}
STORIES = {
    'who sky sky_winter sky_spring sky_summer sky_autumn want go no_luck meet tell seek': STORY,
    'give have lose sad cry look find gift get_gift hand_over joy break mend quarrel': STORY,
    'anger peace plan plan_summer storm storm_winter shelter clear found_it glad happy': STORY,
    'thanks feast keep end moral patience sharing': STORY,
    'had now other_had other_now together': STORY,
    'hero_gains hero_loses hero_gives other_gives other_gains': STORY,
}
TOLD = {
    'job home pet food colour friend': 'p v he his him does place home says village his_p',
    'all_job all_home all_pet all_food all_colour': 'v vs',
    'only_one several': 'names says village count',
    'animal': 'x says legs legs_word young',
    'colour_of_thing': 'x v',
    'work': 'x does place',
    'greeting farewell': 'a b',
    each('ask'): 'b p',
    'counting': (
        'row by first last p then some more less high low parity next_parity '
        'word digits next_word next_digits number_words'
    ),
    'spelling about_letters': 'word letters length first last letter times are count number',
    'sum': 'x y total',
    'calendar calendar_day': 'this before after later name length all number ordinal',
    'calendar_month': 'this before after later name length all number ordinal season months',
    'calendar_season': 'this before after later name length all number ordinal weather',
    'opposites': 'x y',
    'problem_plus problem_minus problem_times': 'p q he his him n m t ts tt day day2',
    'solution': 'solved rule',
}
HOLES = {
    'questions': QUESTIONS,
    'talk': TALK,
    'problems': PROBLEMS,
    'voices': VOICES,
    'answers': ANSWERS,
    'elsewhere': {f'{ELSEWHERE} program maths measure their': ''},
    'stories': STORIES,
    'told': TOLD,
}


def holes_of(name: str) -> dict[str, frozenset[str]]:
    """The table of a text file: heading -> its holes."""
    table = {}
    for headings, holes in HOLES[name].items():
        for heading in headings.split():
            table[heading] = frozenset(holes.split())
    return table
