"""
The headings of the text files, and the holes that their lines may have. Tables only.

wordings.read holds every line of a file against its table. A hole is usable in three forms:
{job} is 'baker', {a_job} 'a baker', {Job} 'Baker'.
"""

PERSON = 'name gender job home pet food colour friend he his him does place'
ELSEWHERE = 'country city famous beast subject language pain'
OUTSIDE = (
    f'{ELSEWHERE} {PERSON} program maths measure their animal day stranger word another unknown'
)
ANIMAL = 'name many sound legs young'
NEIGHBOUR = 'word kind side'
PROBLEM = (
    'a b c d s s_object t he him his thing things others bag bags eats has pays'  # a word problem
)
STORY = (
    'a a.his a.him a.job A x b b.his b.job b.pet b.food b.colour B y t t.one_a t.look_a t.many_other '
    'ts look where home home2 pet food job village bond to at at2 animal says weekday time month '
    'season others walk n'
)
FIELDS = ('job', 'home', 'pet', 'food', 'colour', 'friend')


def each(prefix: str) -> str:
    """'is_job is_home is_pet is_food is_colour is_friend'"""
    return ' '.join(f'{prefix}_{field}' for field in FIELDS)


QUESTIONS = {
    'frame': 'form',
    'words_before words_behind': f'{ELSEWHERE} word another',
    'somebody tale a_story': '',
    # people
    'job home pet food colour friend who_is job_does job_place works_where': PERSON,
    each('who'): 'value',
    each('is'): f'{PERSON} value',
    each('or'): f'{PERSON} first second',
    # animals, opposites, colours
    'animal_sound animal_legs animal_young animal_says animal_parent animal_what': ANIMAL,
    'opposite': 'word',
    'colour_of': 'thing many are do',
    'which_colour': 'thing first second',
    'thing_of': 'colour',
    'claim_sound claim_colour claim_opposite': 'thing value',
    # days, months, seasons, the village
    'after before day_after day_before': NEIGHBOUR,
    'ordinal': 'which kind whole',
    'season_of': 'month',
    'months_of': 'name',
    'days_in_week months_in_year seasons_in_year list_days list_months list_seasons': '',
    'village_name villagers how_many_people village': '',
    # letters, counting, lists of words
    'spell length first_letter last_letter': 'word',
    'occurrences': 'word c',
    'count_up count_up_from_one count_down count_down_to_one': 'a b by step',
    'count_steps how_many_numbers': 'a b by step',
    'number_after number_before': 'n',
    'repeat follows': 'words word',
    # stories
    'tell_story tell_story_of_two want_story': 'about plainly',
    # multiple choice
    'choose_opposite choose_after choose_before': 'word kind',
    'choose_colour choose_sound choose_legs choose_young': 'name',
    # later in a conversation
    'my_name my_colour my_pet my_city my_food': 'value',
    'ask_my_name ask_my_colour ask_my_pet ask_my_city ask_my_food': '',
    f'{each("and")} and_name': PERSON,
    'and_word spell_first': 'word',
    'next_day': 'day',
    'and_then and_length say_again what_did_i_ask': '',
    'has_things gains losses how_many_has gains_some loses_some': 'name he a b things',
}
TALK = {
    'who_are_you your_name your_maker your_skills human which_model personal languages': '',
    'around': 'talk',
    'hello hello_nice_to_meet hello_and_more good_time good_time_and_more how_are_you': 'time',
    'how_are_you_today thanks_and_more bye_and_more more_and_bye praise_and_more thanks': 'time',
    'bye good_night praise sorry sad happy criticism lets_talk': 'time',
    'chinese_question chinese_identity chinese_hello chinese_thanks chinese_bye': '',
    'chinese_how_are_you chinese_ending': '',
    'outside_country outside_city outside_famous outside_stranger outside_nonsense': OUTSIDE,
    'outside_private outside_animal outside_weather outside_now outside_subject': OUTSIDE,
    'outside_language outside_program outside_maths outside_advice': OUTSIDE,
}
PROBLEMS = {
    'problem short_problem': 'story question',
    'buys loses left now in_all together coins_left coins_paid each remain': PROBLEM,
    'how_many_more in_each': PROBLEM,
    'add add_together add_there take take_there more_than bags own_bags price share': PROBLEM,
    'fill_bags children_share gain_give lose_gain gain_get lose_give bags_gain bags_lose': PROBLEM,
    'every_day times_as_many so_many_more pool_and_share lose_and_share spend': PROBLEM,
    'bags_gain_give gain_lose_give lose_gain_get buy_both every_day_lose': PROBLEM,
    'gain_give_share times_and_more spend_and_get': PROBLEM,
    # sums
    'bare_sum long_sum': 'sum',
    'plus minus times over plus_sum minus_sum times_sum over_sum': 'a b',
    'plus_noun minus_noun times_noun over_noun': 'a b',
    'named_sum': 'name',
}
VOICES = {  # the kinds of the three files above, and these
    **QUESTIONS,
    **TALK,
    'month_after month_before season_after season_before': NEIGHBOUR,
    'story story_about': 'subject',
    'outside outside_villager': OUTSIDE,
    'problem_add problem_add_me problem_take problem_take_me problem_times problem_share': PROBLEM,
    'plus minus times over': 'a b',
}
ANSWERS = {
    'job home pet food colour friend who_is job_does job_place works_where': PERSON,
    each('who'): 'value names',
    'animal_sound animal_legs animal_young animal_says animal_parent animal_what': f'{ANIMAL} value',
    'opposite after before': 'word value',
    'colour_of claim_sound claim_colour claim_opposite': 'thing value',
    'ordinal': 'which kind whole value',
    'season_of': 'month value',
    'months_of': 'name value',
    'days_in_week months_in_year seasons_in_year list_days list_months list_seasons': 'value',
    'village_name villagers how_many_people village': 'value',
    'spell length first_letter last_letter': 'spelt value',
    'occurrences': 'spelt c value',
    'count how_many_numbers repeat': 'row value',
    'follows': 'word value',
    'has_now has_left has_more in_all are_left together each_gets bag_holds they_cost': (
        f'{PROBLEM} r result'
    ),
    'pays coins_left coins_now': f'{PROBLEM} r result',
    'who_are_you your_name your_maker your_skills human which_model personal languages': '',
    'hello good_time how_are_you thanks bye praise good_night sorry sad happy criticism': 'time',
    'lets_talk': 'time',
    'chinese_identity chinese_hello chinese_thanks chinese_bye chinese_how_are_you outside': '',
    'my_name my_colour my_pet my_city my_food': 'value',
    'ask_my_name ask_my_colour ask_my_pet ask_my_city ask_my_food': 'value',
    'has_things': 'name a things',
    'what_did_i_ask': 'question',
}
STORIES = {
    'who sky sky_winter sky_spring sky_summer sky_autumn want go no_luck meet tell seek give': STORY,
    'have lose sad cry look find gift get_gift hand_over joy break mend quarrel anger peace': STORY,
    'plan plan_summer storm storm_winter shelter clear found_it glad happy thanks feast keep': STORY,
    'end moral patience sharing had now other_had other_now together': STORY,
    'hero_gains hero_loses hero_gives other_gives other_gains': STORY,
}
TOLD = {
    'job home pet food colour friend': 'p v he his does place home says village his_p',
    'all_job all_home all_pet all_food all_colour': 'v vs',
    'only_one several': 'names says village count',
    'animal': 'x says legs legs_word young',
    'colour_of_thing': 'x v',
    'work': 'x does place',
    'greeting farewell': 'a b',
    each('ask'): 'b p',
    'counting': (
        'row by first last p then some more less high low parity next_parity word digits next_word '
        'next_digits number_words'
    ),
    'spelling about_letters': 'word letters length first last letter times are count number',
    'sum': 'x y total',
    'calendar calendar_day calendar_month calendar_season': (
        'this before after later name length all number season ordinal months weather'
    ),
    'opposites': 'x y',
    'problem_plus problem_minus problem_times': 'p q he him n m t ts tt day day2',
    'solution': 'solved rule',
}
OTHER_PLACES = {f'{ELSEWHERE} program maths measure their': ''}

HOLES = {  # name of the text file -> heading -> its holes
    name: {
        heading: frozenset(holes.split())
        for headings, holes in groups.items()
        for heading in headings.split()
    }
    for name, groups in {
        'questions': QUESTIONS,
        'talk': TALK,
        'problems': PROBLEMS,
        'voices': VOICES,
        'answers': ANSWERS,
        'elsewhere': OTHER_PLACES,
        'stories': STORIES,
        'told': TOLD,
    }.items()
}
