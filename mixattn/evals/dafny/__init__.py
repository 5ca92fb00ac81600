"""Dafny programs: a verifier behind one function type, and the token-level reading of Dafny text.

    verify = installed()                    # the real verifier; OSError if there is none
    verify("method M() { assert 1 < 2; }").verdict     # "verified"

`ScriptedVerifier` is the same function type without a verifier. Everything here reads Dafny 2.3 and 4.
"""
