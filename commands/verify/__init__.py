"""`make verify`: is every recorded byte still there, and do stages give the same again?"""
