"""PTB-XL's statements in words: the 71 codes of its SCP-ECG vocabulary and the classes that group them.

Codes and groups are those of scp_statements.csv (PTB-XL, Wagner et al. 2020); four statements that are both a
diagnosis and a form stand under their diagnosis.
"""

NORMAL, INFARCTION, ST_T_CHANGE = "normal", "myocardial infarction", "ST/T change"
CONDUCTION, HYPERTROPHY, FORM, RHYTHM = "conduction disturbance", "hypertrophy", "form", "rhythm"

_WORDS = {
    ST_T_CHANGE: {
        "NDT": "non-diagnostic T abnormality",
        "NST_": "non-specific ST change",
        "DIG": "digitalis effect",
        "LNGQT": "long QT interval",
        "ISC_": "non-specific ischaemia",
        "ISCAL": "anterolateral ischaemia",
        "ISCIN": "inferior ischaemia",
        "ISCIL": "inferolateral ischaemia",
        "ISCAS": "anteroseptal ischaemia",
        "ISCLA": "lateral ischaemia",
        "ANEUR": "ST-T change as of a ventricular aneurysm",
        "EL": "electrolyte disturbance or drug effect",
        "ISCAN": "anterior ischaemia",
    },
    NORMAL: {
        "NORM": "normal ECG",
    },
    INFARCTION: {
        "IMI": "inferior myocardial infarction",
        "ASMI": "anteroseptal myocardial infarction",
        "ILMI": "inferolateral myocardial infarction",
        "AMI": "anterior myocardial infarction",
        "ALMI": "anterolateral myocardial infarction",
        "INJAS": "anteroseptal subendocardial injury",
        "LMI": "lateral myocardial infarction",
        "INJAL": "anterolateral subendocardial injury",
        "IPLMI": "inferoposterolateral myocardial infarction",
        "IPMI": "inferoposterior myocardial infarction",
        "INJIN": "inferior subendocardial injury",
        "INJLA": "lateral subendocardial injury",
        "PMI": "posterior myocardial infarction",
        "INJIL": "inferolateral subendocardial injury",
    },
    HYPERTROPHY: {
        "LVH": "left ventricular hypertrophy",
        "LAO/LAE": "left atrial overload or enlargement",
        "RVH": "right ventricular hypertrophy",
        "RAO/RAE": "right atrial overload or enlargement",
        "SEHYP": "septal hypertrophy",
    },
    CONDUCTION: {
        "LAFB": "left anterior fascicular block",
        "IRBBB": "incomplete right bundle branch block",
        "1AVB": "first-degree AV block",
        "IVCD": "non-specific intraventricular conduction disturbance",
        "CRBBB": "complete right bundle branch block",
        "CLBBB": "complete left bundle branch block",
        "LPFB": "left posterior fascicular block",
        "WPW": "Wolff-Parkinson-White syndrome",
        "ILBBB": "incomplete left bundle branch block",
        "3AVB": "third-degree AV block",
        "2AVB": "second-degree AV block",
    },
    FORM: {
        "ABQRS": "abnormal QRS",
        "PVC": "ventricular premature complex",
        "STD_": "non-specific ST depression",
        "VCLVH": "voltage criteria of left ventricular hypertrophy",
        "QWAVE": "Q waves",
        "LOWT": "low T waves",
        "NT_": "non-specific T-wave change",
        "PAC": "atrial premature complex",
        "LPR": "long PR interval",
        "INVT": "inverted T waves",
        "LVOLT": "low QRS voltage",
        "HVOLT": "high QRS voltage",
        "TAB_": "T-wave abnormality",
        "STE_": "non-specific ST elevation",
        "PRC(S)": "premature complexes",
    },
    RHYTHM: {
        "SR": "sinus rhythm",
        "AFIB": "atrial fibrillation",
        "STACH": "sinus tachycardia",
        "SARRH": "sinus arrhythmia",
        "SBRAD": "sinus bradycardia",
        "PACE": "normally functioning pacemaker",
        "SVARR": "supraventricular arrhythmia",
        "BIGU": "bigeminy",
        "AFLT": "atrial flutter",
        "SVTAC": "supraventricular tachycardia",
        "PSVT": "paroxysmal supraventricular tachycardia",
        "TRIGU": "trigeminy",
    },
}
# labels of the super- and subdiagnostic sets that are no statements
_CLASSES = {
    "MI": ("myocardial infarction", INFARCTION),
    "STTC": ("ST/T change", ST_T_CHANGE),
    "CD": ("conduction disturbance", CONDUCTION),
    "HYP": ("hypertrophy", HYPERTROPHY),
    "ISCA": ("ischaemia in anterior leads", ST_T_CHANGE),
    "ISCI": ("ischaemia in inferior leads", ST_T_CHANGE),
    "LAFB/LPFB": ("left fascicular block", CONDUCTION),
    "_AVB": ("AV block", CONDUCTION),
}

# code: (words, group)
STATEMENTS = {code: (words, group) for group, codes in _WORDS.items() for code, words in codes.items()}
STATEMENTS_AND_CLASSES = STATEMENTS | _CLASSES


def in_words(label):
    """(words, group) of a label; a label that PTB-XL does not know speaks for itself and has no group."""
    return STATEMENTS_AND_CLASSES.get(label, (label, None))
