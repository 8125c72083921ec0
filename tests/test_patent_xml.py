"""Claims out of the USPTO's XML: four forms of publication, made small here, and real ones where they are (P1, P6)."""

import os
from pathlib import Path

import pytest

from lace_lora import claim_links, claims, patent_recipe, patent_xml
from lace_lora.errors import SettingsError
from tests.generated import ROOT

REAL = Path(os.environ.get("LACE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "patent_text"
RECIPE = patent_recipe.read()

GRANT = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE us-patent-grant SYSTEM "x.dtd" [ ]>
<us-patent-grant><us-bibliographic-data-grant><publication-reference><document-id><country>US</country>
<doc-number>06000001</doc-number><kind>B2</kind></document-id></publication-reference>
<classification-ipc><main-classification>F16H055/17</main-classification></classification-ipc>
<classification-cpc><section>F</section><class>16</class><subclass>B</subclass><main-group>37</main-group>
<subgroup>08</subgroup></classification-cpc>
<invention-title>Star &amp; wheel</invention-title></us-bibliographic-data-grant>
<claims><claim id="CLM-00001" num="00001"><claim-text>1. A wheel, comprising:
<claim-text>a hub<b>12</b>; and</claim-text><claim-text>nine teeth.</claim-text></claim-text></claim>
<claim id="CLM-00002" num="00002"><claim-text>2. The wheel of <claim-ref idref="CLM-00001">claim 1</claim-ref>, wherein
it turns as in <figref>FIG. 3</figref>.</claim-text></claim></claims></us-patent-grant>
"""
OLD_GRANT = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE PATDOC SYSTEM "x.dtd" [<!ENTITY D0.TIF SYSTEM "D0.TIF" NDATA TIF>]>
<PATDOC><SDOBI><B100><B110><DNUM><PDAT>D0435854</PDAT></DNUM></B110><B130><PDAT>S</PDAT></B130></B100>
<B500><B540><STEXT><PDAT>Knob</PDAT></STEXT></B540></B500></SDOBI>
<SDOCL><CL><CLM ID="CLM-00001"><PARA><PTEXT><PDAT>The ornamental design for a knob, as shown and described.</PDAT>
</PTEXT></PARA></CLM></CL></SDOCL></PATDOC>
"""
OLD_APPLICATION = """<!DOCTYPE simple PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">
<patent-application-publication><subdoc-bibliographic-information><document-id><doc-number>20010000044</doc-number>
<kind-code>A1</kind-code></document-id><title-of-invention> Rack </title-of-invention>
</subdoc-bibliographic-information><subdoc-claims>
<claim id="CLM-00001"><claim-text><highlight><bold>1.</bold></highlight>A rack &mdash; comprising a bar;</claim-text>
<claim-text>and teeth.</claim-text></claim>
<claim id="CLM-00002"><claim-text><highlight>2.</highlight>The rack of claim 1, wherein it is flat.</claim-text>
</claim></subdoc-claims></patent-application-publication>
"""
OTHER = '<?xml version="1.0"?>\n<sequence-cwu><id>1</id></sequence-cwu>\n'


def file_of(folder: Path, text: str) -> Path:
    path = folder / "patent.xml"
    path.write_text(text, encoding="utf-8")
    return path


def linked(path: Path) -> claim_links.Linked:
    return claim_links.linked(claims.read([path], RECIPE), RECIPE)


def test_a_grant_gives_its_claims_with_parents_classes_and_title(tmp_path):
    """P6: numbers in bold stay beside their word's space, blocks stand apart, the number in front is gone."""
    first, second = linked(file_of(tmp_path, GRANT)).claims
    assert first.key == ("US6000001B2", "1") and first.title == "Star & wheel"
    assert first.text == "A wheel, comprising: a hub12; and nine teeth."
    assert first.cpc == ("F16H 55/17", "F16B 37/08") and first.features == ("a hub12", "nine teeth")
    assert second.parents == (first.key,) and second.figures == ("3",) and second.category == "wheel"


def test_grants_and_applications_of_2001_are_read_too(tmp_path):
    """P1: entities for drawings, named signs without a declaration, no first line."""
    (design,) = linked(file_of(tmp_path, OLD_GRANT)).claims
    assert design.key == ("USD435854S", "1") and design.category == "knob" and design.title == "Knob"
    first, second = linked(file_of(tmp_path, OLD_APPLICATION)).claims
    assert first.text == "A rack — comprising a bar; and teeth." and first.key == ("US20010000044A1", "1")
    assert second.parents == (first.key,)


def test_a_weekly_file_holds_many_and_what_is_no_patent_is_passed_over(tmp_path):
    """P1: documents one after the other."""
    found = linked(file_of(tmp_path, GRANT + OTHER + OLD_GRANT))
    assert [claim.patent_id for claim in found.claims] == ["US6000001B2", "US6000001B2", "USD435854S"]
    assert found.notes == ("patent.xml: document 2 is a sequence-cwu; it is passed over",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<a><b></a>", "is no XML that can be read (mismatched tag"), (OTHER, "is XML, but no patent of the USPTO"),
        (GRANT + GRANT[:500], "patent.xml, document 2, is no XML"), ("", "is no XML that can be read (no"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "/etc/passwd">]><us-patent-grant>&x;</us-patent-grant>', "undefined entity"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_and_nothing_outside_the_file_is_opened(tmp_path, text, said):
    """P1."""
    with pytest.raises(SettingsError) as caught:
        linked(file_of(tmp_path, text))
    assert said in str(caught.value)


def test_a_document_without_claims_is_noted(tmp_path):
    """P1."""
    text = GRANT[: GRANT.index("<claims>")] + "</us-patent-grant>"
    assert linked(file_of(tmp_path, text)).notes == (
        "patent.xml: US6000001B2 has no claims that can be read; it is passed over",
    )


@pytest.mark.skipif(not REAL.is_dir(), reason="the real patents are not here: ../shared/data/patent_text")
def test_real_patents_are_read_whole():
    """P1, P6: counted by hand in the files: 2, 21, 10 and 1 claims, 3 of 21 independent, the longest chain 1-3-4-5."""
    files = sorted(REAL.glob("*.xml"))
    found = claim_links.linked(claims.read(files, RECIPE), RECIPE)
    assert len(found.claims) == found.count == 34 and not found.faults and not found.notes
    counts = [sum(claim.patent_id == name for claim in found.claims)
              for name in ("US6859910B2", "US20010000044A1", "US20050004437A1", "USD435854S")]  # fmt: skip
    assert counts == [2, 21, 10, 1]
    game = {claim.claim_id: claim for claim in found.claims if claim.patent_id == "US20010000044A1"}
    assert [name for name, claim in game.items() if not claim.parents] == ["1", "13", "19"]
    assert (
        game["5"].parents[0][1] == "4"
        and game["5"].root[1] == "1"
        and game["5"].features == ("the PDA is a video game",)
    )
    assert {claim.category for claim in found.claims} == {
        "method of executing an electronic transaction", "method of doing business", "method of determining a price",
        "system", "simulation device", "disc cartridge",
    }  # fmt: skip
    assert patent_xml.ROOTS.keys() >= {"us-patent-grant", "PATDOC"}
